"""Faults of buckets' clients: which may pass, and what is said of the others.

The clients raise errors of their own and of the libraries below them, which may not be
installed: those are told by their names.
"""

import errno

from schemas.errors import FusionError

_DEFINITE = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
_PASSING = (ConnectionError, TimeoutError)
# What no second try would mend is left out. gcsfs has requests' errors for one status,
# aiohttp's for lost connections; botocore and google-auth have builtins' names anew.
_PASSING_NAMES = {
    "ConnectionError",
    "TimeoutError",
    "HTTPClientError",
    "ResponseParserError",
    "IncompleteReadError",
    "ClientConnectionError",
    "ClientPayloadError",
    "RequestException",
    "TransportError",
    "ChecksumError",
}
_PASSING_STATUS = {408, 429, 500, 501, 502, 503, 504}
_PASSING_ERRNO = {errno.EBUSY, errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO)}

_REFUSED_NAMES = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "SSOError",
    "GoogleAuthError",
}
_REFUSED_STATUS = {401, 403}

_TOLD = (
    *(FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError),
    FusionError,
)
"""What callers ask for, and what is ours and names its path already."""

_OWN_SLIPS = (
    *(TypeError, AttributeError, NameError, LookupError, AssertionError),
    *(NotImplementedError, MemoryError),
)


def may_pass(error: Exception) -> bool:
    """Says whether the same call may succeed a moment later."""
    if isinstance(error, _DEFINITE):
        return False
    if isinstance(error, _PASSING) or _names(error) & _PASSING_NAMES:
        return True
    # google-auth says so of its own: the answer of an endpoint of tokens, say.
    return (
        getattr(error, "retryable", False) is True
        or _status(error) in _PASSING_STATUS
        or (isinstance(error, OSError) and error.errno in _PASSING_ERRNO)
    )


def told(path: str, error: Exception, credentials: str) -> Exception:
    """Returns what a caller is told of a fault that does not pass.

    Args:
      path: what the call was about.
      error: the client's.
      credentials: by which of them the bucket may be opened.

    Returns:
      The error itself where callers know it, or where we slipped; else a FusionError
      that names the path and the cure.
    """
    said = f"{type(error).__name__}: {error}"
    if _is_refusal(error):
        return FusionError(
            f"{path} must be open to this process, but the bucket refused it ({said});"
            " give it credentials that may read, write, list and delete there, and"
            f" have not expired, by {credentials}"
        )
    if isinstance(error, (*_TOLD, *_OWN_SLIPS)):
        return error
    return FusionError(
        f"{path} must be reachable, but the bucket or its client did not take the"
        f" request ({said}); look at the path, the endpoint, the region and the"
        " settings of the bucket, and repeat the command, which goes on where it"
        " stopped"
    )


def _is_refusal(error: Exception) -> bool:
    if isinstance(error, PermissionError) or _status(error) in _REFUSED_STATUS:
        return True
    # gcsfs says 403 by a plain OSError, without a number. S3 answers HEAD without a
    # body, so that an expired token is but a bad request.
    plain = isinstance(error, OSError) and str(error).startswith("Forbidden")
    bare = isinstance(error, OSError) and (
        error.errno == errno.EINVAL and error.strerror in ("Bad Request", "400")
    )
    return plain or bare or bool(_names(error) & _REFUSED_NAMES)


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _status(error: Exception) -> int | None:
    """Returns the status that a client of GCS was answered with, if it says so."""
    status = str(getattr(error, "code", ""))
    return int(status) if status.isdigit() else None
