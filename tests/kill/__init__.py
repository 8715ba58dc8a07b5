"""Kills stages at random instants, repeats them, and compares every byte."""
