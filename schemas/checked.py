"""What stands in the fields of a corpus' records, checked.

A record that cannot be used raises `UnusableError`, whose reason is counted; what is
told of it is never its text.
"""

import json
from typing import Any

MAX_DOCUMENT_BYTES = 1 << 30
"""A longer line is refused, so that a broken or hostile file cannot fill memory."""

Record = bytes | dict[str, Any]
"""An undecoded line, or a row by its columns: text as bytes, not yet checked."""


class TooLong(int):
    """Stands for a value that is not read: its bytes."""


class UnusableError(Exception):
    """A record cannot be used: args are the reason and the detail of its reject."""


def parsed(record: Record) -> dict[str, Any]:
    """Returns the fields of a record by name."""
    if isinstance(record, dict):
        return {name: _decoded(value, name) for name, value in record.items()}
    try:
        content = json.loads(record)
    except UnicodeDecodeError as error:
        raise UnusableError("invalid_utf8", "a line must be UTF-8") from error
    except (ValueError, RecursionError) as error:
        detail = "a line must be one JSON object"
        raise UnusableError("invalid_json", detail) from error
    if not isinstance(content, dict):
        raise UnusableError("invalid_json", "a line must be a JSON object, no value")
    return content


def _decoded(value: Any, field: str) -> Any:
    """Decodes bytes, however deep they lie; leaves any other value."""
    if isinstance(value, list):
        return [_decoded(one, field) for one in value]
    if isinstance(value, dict):
        return {name: _decoded(one, field) for name, one in value.items()}
    if isinstance(value, TooLong):
        detail = f"field {field!r} must hold at most {MAX_DOCUMENT_BYTES} bytes"
        raise UnusableError("too_long", f"{detail}, got {int(value)}")
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise UnusableError("invalid_utf8", f"field {field!r} must be UTF-8") from error


def id_of(value: Any, field: str) -> str:
    """Returns a record's id."""
    if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
        return sound(str(value), field)
    raise UnusableError("missing_id", f"field {field!r} must be a string or a number")


def domain_of(content: dict[str, Any], field: str | None) -> str | None:
    """Returns a record's label, if it has one."""
    domain = content.get(field) if field is not None else None
    if domain is None:
        return None
    if isinstance(domain, str) and domain not in ("", "all"):
        return sound(domain, str(field))
    detail = f"field {field!r} must be a string, and not 'all', which is the sum"
    raise UnusableError("invalid_domain", detail)


def split_of(content: dict[str, Any], field: str | None) -> str | None:
    """Returns the split that a record names, where records do."""
    if field is None:
        return None
    if isinstance(split := content.get(field), str) and split:
        return sound(split, field)
    raise UnusableError("missing_split", f"field {field!r} must name a split")


def text_of(text: Any, field: str) -> str:
    """Returns a record's text, which holds a character at least."""
    if not isinstance(text, str):
        raise UnusableError("missing_text", f"field {field!r} must be a string")
    if not text:
        raise UnusableError("empty_text", "the text must hold a character")
    return sound(text, field)


def sound(text: str, field: str) -> str:
    """Refuses half a character, which JSON's escapes can spell and no UTF-8 holds."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        detail = f"field {field!r} must hold whole characters, not half of a pair"
        raise UnusableError("invalid_utf8", detail) from error
    return text
