"""What turns text into ids, behind one shape.

`FastBackend` runs the `tokenizers` library, `SlowBackend` a tokenizer that exists only
as Python code in transformers, `WorldBackend` RWKV's, which neither of them has. All
read every text as text: a special token that it spells stays letters. Spans and roles
are `transforms.tokenizer`'s.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from tokenizers import Tokenizer

from transforms.functional import longest_match, tokenizer_json
from transforms.functional.control import Spelling
from transforms.functional.longest_match import LongestMatch

_PROBE = "Ab, ä中😀\n  x\ty"  # a letter of each UTF-8 length, and white space


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CharSpans:
    """Ids of a text and the characters [start, stop) that each was made of."""

    ids: list[int]
    starts: Int64[np.ndarray, " n"]
    stops: Int64[np.ndarray, " n"]


@runtime_checkable  # for the tests' type checks
class Reader(Protocol):
    """Tokenizes texts that all stand in the same place of a window."""

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes texts."""

    def count(self, text: str) -> int:
        """Counts the tokens of a text."""

    def char_spans(self, text: str) -> CharSpans | None:
        """Returns ids with their characters, if the library can tell them."""

    def normalized(self, text: str) -> bytes:
        """Returns the bytes that the tokens of a text should spell, prefix apart."""


@runtime_checkable
class Backend(Protocol):
    """What `transforms.tokenizer` needs of a library.

    Attributes:
      beginning: reads a text that begins a window.
      middle: reads a text as if inside running text: no dummy prefix.
      behind_control: reads what follows a control token.
      token_bytes: the bytes each id stands for; None for control tokens.
      controls: the control tokens as they are written.
      identity: all that tokenization depends on.
    """

    beginning: Reader
    middle: Reader
    behind_control: Reader
    has_dummy_prefix: bool
    token_bytes: list[bytes | None]
    controls: tuple[Spelling, ...]
    identity: bytes

    def token(self, token_id: int) -> str | None:
        """Returns the string that the vocabulary has for an id, if any."""

    def decode(self, token_id: int) -> str:
        """Returns the text that the library makes of one id alone."""


class FastBackend:
    """A tokenizer of the `tokenizers` library.

    Args:
      tokenizer: owned from here on; what is not the text's own tokenization (start
        token, padding, truncation, BPE dropout) is switched off in it.

    Raises:
      ValueError: if it cannot keep text from becoming a control token.
    """

    beginning: Reader
    middle: Reader
    behind_control: Reader

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
        self.controls = tokenizer_json.control_spellings(spec)
        self.identity = written.encode()
        self.beginning = self.middle = FastReader(tokenizer, spec)
        if self.has_dummy_prefix:
            self.middle = FastReader(Tokenizer.from_str(written), running)
        repeats = tokenizer_json.repeats_prefix(spec)
        self.behind_control = self.beginning if repeats else self.middle
        self._tokenizer = tokenizer

    def token(self, token_id: int) -> str | None:
        """Returns the string that the vocabulary has for an id, if any."""
        found: str | None = self._tokenizer.id_to_token(token_id)
        return found

    def decode(self, token_id: int) -> str:
        """Returns the text that the library makes of one id alone."""
        return str(self._tokenizer.decode([token_id], skip_special_tokens=False))


class FastReader:
    """Runs the `tokenizers` library with the steps of `spec`, and a guard."""

    def __init__(self, tokenizer: Any, spec: tokenizer_json.Spec) -> None:
        guarded = tokenizer_json.with_guard(spec)
        steps = _build(tokenizer_json.only_steps(guarded))
        tokenizer.normalizer = steps.normalizer
        tokenizer.pre_tokenizer = steps.pre_tokenizer
        tokenizer.encode_special_tokens = True  # what spells one is text
        self._tokenizer = tokenizer
        self._normalizer = _build(tokenizer_json.only_normalizer(spec)).normalizer
        self._space = tokenizer_json.space_letter(spec)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores what the library's own pickling forgets."""
        self.__dict__.update(state)
        self._tokenizer.encode_special_tokens = True

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes texts."""
        batch = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
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

    beginning: Reader
    middle: Reader
    behind_control: Reader

    def __init__(self, tokenizer: Any, identity: bytes) -> None:
        pieces = {index: piece for piece, index in tokenizer.get_vocab().items()}
        special = dict(
            zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        )
        self.controls = tuple(
            Spelling(text=text, token_id=index)
            for index, text in special.items()
            if index != tokenizer.unk_token_id
        )
        self.identity = json.dumps(sorted(pieces.items())).encode() + identity
        self.beginning = SlowReader(tokenizer)
        text_pieces = {i: piece for i, piece in pieces.items() if i not in special}
        self.token_bytes = _read_pieces(self.beginning, text_pieces, 1 + max(pieces))
        self._pieces = pieces
        self._tokenizer = tokenizer
        (first,) = self.beginning.ids(["a"])
        spelled = b"".join(self.token_bytes[index] or b"" for index in first)
        self.has_dummy_prefix = spelled == b" a"
        self.middle = self.behind_control = self.beginning
        if self.has_dummy_prefix:
            self.middle = SlowReader(tokenizer, lead="\n")

    def token(self, token_id: int) -> str | None:
        """Returns the string that the vocabulary has for an id, if any."""
        return self._pieces.get(token_id)

    def decode(self, token_id: int) -> str:
        """Returns the text that the library makes of one id alone."""
        return str(self._tokenizer.decode([token_id]))


class SlowReader:
    """Runs a Python tokenizer.

    Args:
      tokenizer: a transformers `PreTrainedTokenizer`.
      lead: a text to put in front of each text, whose tokens are taken away again:
        it takes the dummy prefix upon itself.
    """

    def __init__(self, tokenizer: Any, lead: str = "") -> None:
        self._tokenizer = tokenizer
        self._lead = lead
        self._lead_ids = self._read(lead) if lead else []

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes texts.

        Raises:
          ValueError: if the lead and the text behind it share a token.
        """
        size = len(self._lead_ids)
        batch = [self._read(self._lead + text) for text in texts]
        if any(ids[:size] != self._lead_ids for ids in batch):
            raise ValueError(
                f"{type(self._tokenizer).__name__} must keep a line end apart from "
                "the text behind it; convert the tokenizer to a tokenizer.json"
            )
        return [ids[size:] for ids in batch]

    def count(self, text: str) -> int:
        """Counts the tokens of a text."""
        return len(self.ids([text])[0])

    def char_spans(self, text: str) -> None:
        """Says that Python tokenizers do not report characters."""
        del text

    def normalized(self, text: str) -> bytes:
        """Returns the bytes of the text: readings know no normalizer."""
        return text.encode()

    def _read(self, text: str) -> list[int]:
        tokens = self._tokenizer.tokenize(text, split_special_tokens=True)
        return self._tokenizer.convert_tokens_to_ids(tokens)


class WorldBackend:
    """RWKV's World tokenizer: the longest token that fits, from the left.

    Args:
      vocabulary: its file, `rwkv_vocab_*.txt`.

    Raises:
      ValueError: if the file is no such vocabulary.
    """

    beginning: Reader
    middle: Reader
    behind_control: Reader

    def __init__(self, vocabulary: bytes) -> None:
        self.token_bytes = longest_match.read_vocabulary(
            vocabulary.decode().splitlines()
        )
        self.has_dummy_prefix = False
        self.controls: tuple[Spelling, ...] = ()
        self.identity = b"longest match\0" + vocabulary
        reader = WorldReader(LongestMatch(self.token_bytes))
        self.beginning = self.middle = self.behind_control = reader

    def token(self, token_id: int) -> str | None:
        """Returns the text of an id, if any, bytes that are not UTF-8 escaped."""
        piece = self.token_bytes[token_id]
        return None if piece is None else piece.decode(errors="backslashreplace")

    def decode(self, token_id: int) -> str:
        """Returns the text of one id alone; nothing for the end."""
        return (self.token_bytes[token_id] or b"").decode(errors="replace")


class WorldReader:
    """Reads texts by the longest match: the same wherever they stand."""

    def __init__(self, longest: LongestMatch) -> None:
        self._longest = longest

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes texts."""
        return [self._longest.encode(text.encode()) for text in texts]

    def count(self, text: str) -> int:
        """Counts the tokens of a text."""
        return len(self._longest.encode(text.encode()))

    def char_spans(self, text: str) -> None:
        """Says that there are none: the tokens' bytes are always the text's."""
        del text

    def normalized(self, text: str) -> bytes:
        """Returns the bytes of the text: nothing is normalized."""
        return text.encode()


def _build(spec: tokenizer_json.Spec) -> Any:
    return Tokenizer.from_str(json.dumps(spec))


def _read_pieces(
    reader: Reader, pieces: dict[int, str], size: int
) -> list[bytes | None]:
    """Finds the reading of token strings that gives a probe text back."""
    wanted = _PROBE.encode()
    (probe,) = reader.ids([_PROBE])
    for reading in _READINGS:
        table: list[bytes | None] = [None] * size
        for index, piece in pieces.items():
            table[index] = reading(piece)
        spelled = b"".join(table[index] or b"" for index in probe)
        if spelled in (wanted, b" " + wanted):
            return table
    raise ValueError(
        "tokens must spell a text byte for byte, but no known reading of this "
        "tokenizer's token strings gives a probe text back; convert it to a "
        "tokenizer.json, or leave this model out"
    )


def _read_latin(piece: str) -> bytes | None:
    return bytes([ord(piece)]) if len(piece) == 1 and ord(piece) < 256 else None


_READINGS: tuple[Callable[[str], bytes | None], ...] = (
    partial(tokenizer_json.from_letters, letters=tokenizer_json.byte_letters()),
    partial(tokenizer_json.from_piece, space="▁"),
    _read_latin,  # one character a byte, as ByT5 has it
)
