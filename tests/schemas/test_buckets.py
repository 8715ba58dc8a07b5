import errno
import sys
import tempfile
from pathlib import Path

import pytest

from schemas import buckets, files
from schemas.errors import FusionError


@pytest.mark.parametrize(
    ("path", "client", "extra"),
    [("s3://b/a", "s3fs", "aws"), ("gs://b/a", "gcsfs.core", "gcp")],
)
def test_a_missing_client_is_told_by_its_extra(
    path: str, client: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, client, None)
    monkeypatch.setattr(buckets, "_client", buckets._client.__wrapped__)
    with pytest.raises(FusionError, match=rf"pip install 'fusebeam\[{extra}\]'"):
        files.exists(path)


class HttpError(Exception):
    """Is called as gcsfs calls its own."""

    def __init__(self, code: int) -> None:
        self.code = code


class GoogleAuthError(Exception):
    """Is called as google-auth calls its own."""

    retryable = False


class TransportError(GoogleAuthError):
    """Is called as google-auth calls what a lost connection to it is."""


class RefreshError(GoogleAuthError):
    """Is called as google-auth calls what became of a token."""

    def __init__(self, retryable: bool = False) -> None:
        self.retryable = retryable


BotoConnectionError = type("ConnectionError", (Exception,), {})
"""Is called as botocore calls the parent of what an endpoint that is not there is."""


class HTTPClientError(Exception):
    """Is called as botocore calls its own."""


class NoCredentialsError(Exception):
    """Is called as botocore calls its own."""


class _Failing:
    """Fails so many times, then answers."""

    def __init__(self, times: int, error: Exception) -> None:
        self._times, self._error, self.calls = times, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self._times:
            raise self._error
        return "answer"


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr(buckets.time, "sleep", taken.append)
    return taken


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EBUSY, "SlowDown"),
        ConnectionResetError(),
        TimeoutError(),
        HttpError(503),
        HttpError(429),
        HTTPClientError(),
        BotoConnectionError(),
        TransportError(),
        RefreshError(retryable=True),
    ],
)
def test_what_may_pass_is_tried_again_after_ever_longer_pauses(
    error: Exception, naps: list[float]
) -> None:
    failing = _Failing(3, error)
    assert buckets.ask("s3://b/a", failing) == "answer"
    assert len(naps) == 3
    assert naps == sorted(naps)
    assert 0.5 <= naps[0] <= 1
    assert 2 <= naps[2] <= 4


def test_after_the_last_try_the_error_names_path_and_cause(naps: list[float]) -> None:
    with pytest.raises(ConnectionError, match=r"s3://b/a .*4 tries.*HttpError"):
        buckets.ask("s3://b/a", _Failing(9, HttpError(503)))


@pytest.mark.parametrize("error", [FileNotFoundError("x"), TypeError(), KeyError()])
def test_what_callers_know_and_slips_of_our_own_are_raised_as_they_are(
    error: Exception, naps: list[float]
) -> None:
    failing = _Failing(9, error)
    with pytest.raises(type(error)) as raised:
        buckets.ask("gs://b/a", failing)
    assert raised.value is error
    assert failing.calls == 1


@pytest.mark.parametrize(
    "error",
    [
        HttpError(400),
        OSError(errno.EINVAL, "x"),
        ValueError("Bad Request: b/a"),
        RuntimeError(),
    ],
)
def test_whatever_else_a_client_raises_is_told_once_with_path_and_cure(
    error: Exception, naps: list[float]
) -> None:
    failing = _Failing(9, error)
    with pytest.raises(FusionError, match=r"gs://b/a must be reachable.*endpoint"):
        buckets.ask("gs://b/a", failing)
    assert failing.calls == 1


@pytest.mark.parametrize(
    ("path", "error", "cure"),
    [
        ("s3://b/a", PermissionError("x"), "AWS_ACCESS_KEY_ID"),
        ("s3://b/a", NoCredentialsError(), "AWS_ACCESS_KEY_ID"),
        ("s3://b/a", OSError(errno.EINVAL, "Bad Request"), "not expired.*AWS_"),
        ("gs://b/a", OSError("Forbidden: b/a"), "GOOGLE_APPLICATION_CREDENTIALS"),
        ("gs://b/a", HttpError(401), "GOOGLE_APPLICATION_CREDENTIALS"),
        ("gs://b/a", RefreshError(), "GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_a_closed_bucket_is_told_with_the_cure(
    path: str, error: Exception, cure: str, naps: list[float]
) -> None:
    with pytest.raises(FusionError, match=rf"{path} must be open.*{cure}"):
        buckets.ask(path, _Failing(9, error))
    assert naps == []


def test_what_waits_to_be_sent_has_no_name_that_a_kill_could_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(
        buckets, "send", lambda local, _: sent.append(Path(local).read_bytes())
    )
    with buckets.sending("s3://b/a") as file:
        file.write(b"content")
        assert list(tmp_path.iterdir()) == []
    assert sent == [b"content"]


def test_where_open_files_have_no_paths_what_waits_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    monkeypatch.setattr(buckets, "_OPEN_FILES", f"{tmp_path}/nothing")
    monkeypatch.setattr(
        buckets, "send", lambda local, _: sent.append(Path(local).read_bytes())
    )
    with buckets.sending("s3://b/a") as file:
        file.write(b"content")
    assert sent == [b"content"]


def test_what_is_in_no_bucket_is_called_once_and_fails_as_it_does() -> None:
    failing = _Failing(9, PermissionError("x"))
    with pytest.raises(PermissionError, match=r"^x$"):
        buckets.ask("/a", failing)
    assert failing.calls == 1
