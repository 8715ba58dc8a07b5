"""Tests against servers that speak the protocols of buckets, on loopback."""
