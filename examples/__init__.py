"""Recipes, and the scripts that make what they run on."""
