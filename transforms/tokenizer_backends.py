"""The two libraries that turn text into ids, behind one shape.

`FastBackend` runs the `tokenizers` library, `SlowBackend` a tokenizer that exists only
as Python code in transformers. Both read every text as text: a special token that it
spells stays letters. Spans and roles are `transforms.tokenizer`'s.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int64
from tokenizers import Tokenizer

from transforms.functional import tokenizer_json

_PROBE = "Ab, ä中😀\n  x\ty"  # a letter of each UTF-8 length, and white space


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CharSpans:
    """Ids of a text and the characters [start, stop) that each was made of."""

    ids: list[int]
    starts: Int64[np.ndarray, " n"]
    stops: Int64[np.ndarray, " n"]


class Backend(Protocol):
    """What `transforms.tokenizer` needs of a library."""

    has_dummy_prefix: bool
    token_bytes: list[bytes | None]
    controls: frozenset[int]
    identity: bytes

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes texts, each from its own beginning."""

    def ids_in_running_text(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes texts without a dummy prefix."""

    def count(self, text: str) -> int:
        """Counts the tokens of a text."""

    def char_spans(self, text: str) -> CharSpans | None:
        """Returns ids with their characters, if the library can tell them."""

    def normalized(self, text: str) -> bytes:
        """Returns the bytes that the tokens of a text should spell, prefix apart."""


class FastBackend:
    """A tokenizer of the `tokenizers` library.

    Args:
      tokenizer: owned from here on; what is not the text's own tokenization (start
        token, padding, truncation, BPE dropout) is switched off in it.

    Raises:
      ValueError: if it cannot keep text from becoming a control token.
    """

    def __init__(self, tokenizer: Any) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.post_processor = None
        if hasattr(tokenizer.model, "dropout"):
            tokenizer.model.dropout = None
        written = tokenizer.to_str()  # in one order, whatever file it came from
        spec = json.loads(written)
        running = tokenizer_json.without_prefix(spec)
        self.has_dummy_prefix = running != spec
        self.token_bytes = tokenizer_json.token_bytes(spec)
        self.controls = frozenset(tokenizer_json.special_ids(spec))
        self.identity = written.encode()
        self._space = tokenizer_json.space_letter(spec)
        self._tokenizer = _read_text_as_text(tokenizer, spec)
        self._running = self._tokenizer
        if self.has_dummy_prefix:
            self._running = _read_text_as_text(Tokenizer.from_str(written), running)
        self._normalizer = _steps(tokenizer_json.only_normalizer(spec)).normalizer

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores what the library's own pickling forgets."""
        self.__dict__.update(state)
        self._tokenizer.encode_special_tokens = True
        self._running.encode_special_tokens = True

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes texts, each from its own beginning."""
        batch = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def ids_in_running_text(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes texts without a dummy prefix."""
        batch = self._running.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in batch]

    def count(self, text: str) -> int:
        """Counts the tokens of a text."""
        (encoding,) = self._tokenizer.encode_batch_fast(
            [text], add_special_tokens=False
        )
        return len(encoding)

    def char_spans(self, text: str) -> CharSpans:
        """Returns ids with their characters."""
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        return CharSpans(ids=encoding.ids, starts=offsets[:, 0], stops=offsets[:, 1])

    def normalized(self, text: str) -> bytes:
        """Returns the bytes that the tokens of a text should spell, prefix apart."""
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        return (text.replace(self._space, " ") if self._space else text).encode()


class SlowBackend:
    """A tokenizer that is Python code in transformers, known by its token strings.

    What bytes a token string stands for is not written down anywhere, so the common
    readings are tried on a probe text, and the one that gives it back is used.

    Args:
      tokenizer: a transformers `PreTrainedTokenizer`.
      identity: what tells its vocabulary from others, such as its files.

    Raises:
      ValueError: if no reading gives the probe text back.
    """

    def __init__(self, tokenizer: Any, identity: bytes) -> None:
        self._tokenizer = tokenizer
        self.controls = frozenset(tokenizer.all_special_ids)
        pieces = {index: piece for piece, index in tokenizer.get_vocab().items()}
        self.identity = json.dumps(sorted(pieces.items())).encode() + identity
        self.token_bytes = self._read(pieces)
        table = self.token_bytes
        first = b"".join(table[index] or b"" for index in self.ids(["a"])[0])
        self.has_dummy_prefix = first == b" a"

    def _read(self, pieces: dict[int, str]) -> list[bytes | None]:
        wanted = _PROBE.encode()
        probe = self.ids([_PROBE])[0]
        for reading in _READINGS:
            table: list[bytes | None] = [None] * (1 + max(pieces))
            for index, piece in pieces.items():
                if index not in self.controls:
                    table[index] = reading(piece)
            spelled = b"".join(table[index] or b"" for index in probe)
            if spelled in (wanted, b" " + wanted):
                return table
        raise ValueError(
            f"tokens of {type(self._tokenizer).__name__} must spell a text byte for "
            "byte, but none of the known readings gives a probe text back; convert the "
            "tokenizer to a tokenizer.json, or leave this model out"
        )

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes texts, each from its own beginning."""
        return [
            self._tokenizer.convert_tokens_to_ids(
                self._tokenizer.tokenize(text, split_special_tokens=True)
            )
            for text in texts
        ]

    def ids_in_running_text(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes texts without a dummy prefix.

        Raises:
          ValueError: if the tokens of a text cannot be told from the line end that
            is put in front of it to take the prefix.
        """
        if not self.has_dummy_prefix:
            return self.ids(texts)
        line_end = self.ids(["\n"])[0]
        batch = self.ids(["\n" + text for text in texts])
        if any(ids[: len(line_end)] != line_end for ids in batch):
            raise ValueError(
                f"{type(self._tokenizer).__name__} must keep a line end apart from "
                "the text behind it; convert the tokenizer to a tokenizer.json"
            )
        return [ids[len(line_end) :] for ids in batch]

    def count(self, text: str) -> int:
        """Counts the tokens of a text."""
        return len(self.ids([text])[0])

    def char_spans(self, text: str) -> None:
        """Says that Python tokenizers do not report characters."""
        del text

    def normalized(self, text: str) -> bytes:
        """Returns the bytes of the text: readings know no normalizer."""
        return text.encode()


def _read_text_as_text(tokenizer: Any, spec: tokenizer_json.Spec) -> Any:
    """Gives a tokenizer the steps of `spec`, and a guard for special spellings."""
    steps = _steps(tokenizer_json.only_steps(tokenizer_json.with_guard(spec)))
    tokenizer.normalizer = steps.normalizer
    tokenizer.pre_tokenizer = steps.pre_tokenizer
    tokenizer.encode_special_tokens = True
    return tokenizer


def _steps(spec: tokenizer_json.Spec) -> Any:
    """Builds a tokenizer for the sake of its normalizer and pre-tokenizer."""
    return Tokenizer.from_str(json.dumps(spec))


def _read_latin(piece: str) -> bytes | None:
    return bytes([ord(piece)]) if len(piece) == 1 and ord(piece) < 256 else None


_READINGS: tuple[Callable[[str], bytes | None], ...] = (
    partial(tokenizer_json.from_letters, letters=tokenizer_json.byte_letters()),
    partial(tokenizer_json.from_piece, space="▁"),
    _read_latin,  # one character a byte, as ByT5 has it
)
