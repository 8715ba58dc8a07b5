"""Settings of the laws here."""

from hypothesis import settings

# the first example of a process waits for numba to compile
settings.register_profile("compiled", deadline=None)
settings.load_profile("compiled")
