"""Escapes text of a corpus, so that it can be shown and steers no terminal."""

import unicodedata


def quoted(piece: bytes) -> str:
    r"""Writes bytes as text in quotes; what is no UTF-8 as \xNN, unlike any text.

    Example:
      >>> print(quoted("é".encode()), quoted(b"\xc3"), quoted(b"\\xc3\n"))
      'é' '\xc3' '\\xc3\n'
    """
    text = piece.decode(errors="surrogateescape")
    return f"'{''.join(map(_visible, text))}'"


def _visible(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # so surrogateescape marks a byte that is no text
        return f"\\x{code - 0xDC00:02x}"
    known = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    if char in known:
        return known[char]
    return char if char.isprintable() else _escaped(char)


def _escaped(char: str) -> str:
    code = ord(char)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def plain(text: str) -> str:
    """Escapes control characters, so that no text of a corpus steers a terminal."""
    return "".join(
        _escaped(c) if unicodedata.category(c) == "Cc" and c not in "\n\t" else c
        for c in text
    )


def one_line(text: str) -> str:
    """Escapes control characters, new lines and tabs too."""
    return "".join(_escaped(c) if unicodedata.category(c) == "Cc" else c for c in text)
