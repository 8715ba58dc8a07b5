"""Pure functions on numpy arrays; no Beam, no torch."""
