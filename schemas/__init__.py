"""Records and the files they live in; no Beam, no torch."""
