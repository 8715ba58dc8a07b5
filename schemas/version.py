"""The version of FuseBeam, in one place: setup.py reads it without importing."""

VERSION = "0.1.0"
