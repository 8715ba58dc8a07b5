"""Errors that callers may want to catch apart.

Misuse of a function is ValueError, TypeError or FileNotFoundError. What is wrong
with data has a tree of its own::

    FusionError (ValueError)
      SchemaError       a file, folder or record is not what its reader expects
        NotFiniteError  numbers are NaN or infinite
      AlignmentError    two tokenizations do not describe the same text
"""


class FusionError(ValueError):
    """Data cannot be used as it is."""


class SchemaError(FusionError):
    """A file, folder or record breaks its format, or belongs to another run."""


class NotFiniteError(SchemaError):
    """Numbers that something was made of or came to are NaN or infinite."""


class AlignmentError(FusionError):
    """Tokens do not tile the bytes of the text they are said to come from."""
