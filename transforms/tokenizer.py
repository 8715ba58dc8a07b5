r"""A model's tokenizer, with exact byte spans.

    tokenizer = load("models/smollm2")
    window = tokenizer.encode_window("Häuser\n", ends_document=True)
    window.token_ids, window.byte_ends

Spans tile the UTF-8 of a text exactly, or AlignmentError is raised. No text becomes a
control token, whatever it spells.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from tokenizers import Tokenizer as FastTokenizer

from schemas.arrays import ByteEnds, TokenIds
from schemas.errors import AlignmentError
from transforms import adapters, checkpoint, roles, tokenizer_backends
from transforms.functional import control, spans

_WORLD = "rwkv_vocab_*.txt"
_HUB_FILES = ("*.json", "*.model", "*.txt", "*.tiktoken", "*.jinja")
_OWN = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", _WORLD)
"""What a folder with a tokenizer of its own has, one or the other."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoding:
    """Tokens of a text and where each ends, in bytes of its UTF-8."""

    token_ids: TokenIds
    byte_ends: ByteEnds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokenizer:
    """A model's tokenizer; `load` builds it.

    Attributes:
      name: what messages call it.
      fingerprint: hash of all that the tokenization of texts depends on.
      start_id: the token that stands in front of a window: BOS, or EOS where a
        model has no BOS.
      bos_id: begins a document, or None.
      eos_id: ends a document, or None.
      pad_id: fills rows, or None.
      unk_id: stands for what the vocabulary cannot spell, or None.
      token_bytes: the bytes each id stands for inside running text; None for
        control tokens and ids without a token.
      has_dummy_prefix: whether a space is put in front of a text. It has no bytes:
        the first token's span covers what is left of it, perhaps nothing.
    """

    name: str
    fingerprint: str
    start_id: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    token_bytes: list[bytes | None] = field(repr=False)
    has_dummy_prefix: bool
    _backend: tokenizer_backends.Backend = field(repr=False)
    _spelled: list[bytes] = field(init=False, repr=False)
    _lengths: Int64[np.ndarray, " v"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        spelled = [piece or b"" for piece in self.token_bytes]
        object.__setattr__(self, "_spelled", spelled)
        object.__setattr__(self, "_lengths", np.array([len(s) for s in spelled]))

    @property
    def size(self) -> int:
        """One more than the highest id; a model may have more logits, or fewer."""
        return len(self.token_bytes)

    def vocabulary(self) -> list[str | None]:
        """Returns the string each id has in the vocabulary; None where it has none."""
        return [self._backend.token(token_id) for token_id in range(self.size)]

    def space_mark(self) -> str:
        """Returns what the vocabulary writes for a space: "▁" or, byte-level, "Ġ"."""
        text = "".join(filter(None, self.vocabulary()))
        return max("Ġ▁", key=text.count)

    def decode_each(self) -> list[str]:
        """Decodes each id alone; bytes that are not UTF-8 become U+FFFD."""
        return [self._backend.decode(token_id) for token_id in range(self.size)]

    def encode(self, text: str) -> Encoding:
        """Tokenizes a text from its beginning, without start token and EOS.

        Raises:
          AlignmentError: if spans cannot tile the text's bytes.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokenizes many texts, as `encode` does one."""
        return self._encode(self._backend.beginning, texts)

    def encode_window(
        self, text: str, ends_document: bool, control_spans: Sequence[int] | None = None
    ) -> Encoding:
        """Tokenizes a window, with the start token, and EOS where its document ends.

        The start token has the empty span at 0, EOS the empty span at the end. A
        model without EOS gets none. Where a chat template wrote the model's own BOS in
        front, that is not read a second time: the token behind it covers its bytes.

        Args:
          text: the window's text.
          ends_document: whether EOS follows.
          control_spans: start, stop, ... in bytes: what a chat template wrote. Inside
            them, and nowhere else, spellings of control tokens are control tokens.

        Returns:
          The tokens and their spans.

        Raises:
          AlignmentError: if spans cannot tile the window's bytes.
        """
        if control_spans:
            return self._frame(self._encode_chat(text, control_spans), ends_document)
        return self._frame(self.encode(text), ends_document)

    def encode_windows(
        self, texts: Sequence[str], ends_document: Sequence[bool]
    ) -> list[Encoding]:
        """Tokenizes many windows without control spans, as `encode_window` does one."""
        batch = zip(self.encode_batch(texts), ends_document, strict=True)
        return [self._frame(encoding, ends) for encoding, ends in batch]

    def encode_middle(self, text: str) -> TokenIds:
        """Tokenizes a text as if it stood inside running text: no dummy prefix."""
        return np.array(self.encode_middle_batch([text])[0], np.int32)

    def encode_middle_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes many short texts, as `encode_middle` does one."""
        return self._backend.middle.ids(texts)

    def count(self, text: str) -> int:
        """Counts a text's tokens, without start token and EOS."""
        return self._backend.beginning.count(text)

    @property
    def controls(self) -> tuple[control.Spelling, ...]:
        """How it spells its control tokens."""
        return self._backend.controls

    def count_window(self, text: str, control_spans: Sequence[int]) -> int:
        """Counts a window's tokens, without start token and EOS."""
        pieces = self._between_controls(text, control_spans)
        return sum(
            reader.count(between) + (token is not None)
            for reader, between, token in pieces
        )

    def _encode_chat(self, text: str, control_spans: Sequence[int]) -> Encoding:
        """Tokenizes the texts between control tokens, and puts all in order."""
        ids: list[TokenIds] = []
        ends: list[ByteEnds] = []
        start = 0
        for reader, text_between, token in self._between_controls(text, control_spans):
            (between,) = self._encode(reader, [text_between])
            ids.append(between.token_ids)
            ends.append(between.byte_ends + np.int32(start))
            if token is not None:
                ids.append(np.array([token.token_id], np.int32))
                ends.append(np.array([token.stop], np.int32))
                start = token.stop
        made, stops = np.concatenate(ids), np.concatenate(ends)
        # a BOS in front is that of the frame; what is EOS too may end a turn there
        is_start = self.bos_id is not None and self.bos_id != self.eos_id
        twice = int(is_start and len(made) > 1 and made[0] == self.bos_id)
        return Encoding(token_ids=made[twice:], byte_ends=stops[twice:])

    def _between_controls(
        self, text: str, control_spans: Sequence[int]
    ) -> Iterator[tuple[tokenizer_backends.Reader, str, control.Found | None]]:
        """Yields the texts in front of control tokens and behind the last.

        Yields:
          What reads a text, the text, and the control token behind it, if any.
        """
        raw = text.encode()
        found = control.find_control_tokens(text, control_spans, self.controls)
        reader, start = self._backend.beginning, 0
        for token in found:
            yield reader, raw[start : token.start].decode(), token
            reader, start = self._backend.behind_control, token.stop
        yield reader, raw[start:].decode(), None

    def _frame(self, encoding: Encoding, ends_document: bool) -> Encoding:
        ids, ends = encoding.token_ids, encoding.byte_ends
        behind = [] if self.eos_id is None or not ends_document else [self.eos_id]
        n_bytes = ends[-1] if len(ends) else 0
        ids = np.concatenate([[self.start_id], ids, behind])
        ends = np.concatenate([[0], ends, [n_bytes] * len(behind)])
        return Encoding(token_ids=ids.astype(np.int32), byte_ends=ends.astype(np.int32))

    def _encode(
        self, reader: tokenizer_backends.Reader, texts: Sequence[str]
    ) -> list[Encoding]:
        return [
            self._span(reader, text, ids)
            for text, ids in zip(texts, reader.ids(texts), strict=True)
        ]

    def _span(
        self, reader: tokenizer_backends.Reader, text: str, ids: list[int]
    ) -> Encoding:
        """Finds the spans by the tokens' bytes, or else by their characters."""
        raw = text.encode()
        spelled = self._spell(ids)
        prefix = len(spelled) - len(raw)
        if spelled == raw or (prefix == 1 and spelled == b" " + raw):
            flat = np.array(ids, np.int32)
            ends = spans.ends_from_lengths(self._lengths[flat], prefix)
            return Encoding(token_ids=flat, byte_ends=ends)
        return self._span_by_chars(reader, text)

    def _span_by_chars(self, reader: tokenizer_backends.Reader, text: str) -> Encoding:
        found = reader.char_spans(text)
        if found is None:
            raise self._misfit(text, 0, "its tokens spell other bytes")
        controls = {one.token_id for one in self._backend.controls}
        if not controls.isdisjoint(found.ids):
            raise self._misfit(text, 0, "text became a control token")
        self._check_gaps(reader, text, found)
        flat = np.array(found.ids, np.int32)
        ends = spans.ends_from_offsets(
            found.starts, found.stops, spans.char_borders(text), self._lengths[flat]
        )
        return Encoding(token_ids=flat, byte_ends=ends)

    def _check_gaps(
        self,
        reader: tokenizer_backends.Reader,
        text: str,
        found: tokenizer_backends.CharSpans,
    ) -> None:
        """Makes sure that characters without a token were composed, not dropped.

        A normalizer that makes "é" of "e" and a combining accent reports the "e"
        alone. The accent is covered by that token then, provided that the text would
        be normalized otherwise without it, and that the tokens spell all that the
        normalizer made.
        """
        gaps = spans.uncovered_chars(found.starts, found.stops, len(text))
        if not gaps:
            return
        whole = reader.normalized(text)
        if self._spell(found.ids) not in (whole, b" " + whole):
            raise self._misfit(text, gaps[0][1], "characters were dropped")
        for group, start, stop in gaps:
            if reader.normalized(text[group:stop]) == reader.normalized(
                text[group:start]
            ):
                raise self._misfit(text, start, "characters were dropped")

    def _spell(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self._spelled.__getitem__, ids))

    def _misfit(self, text: str, char: int, reason: str) -> AlignmentError:
        at = len(text[:char].encode())
        return AlignmentError(
            f"tokens of {self.name} must tile the text's {len(text.encode())} bytes, "
            f"but at byte {at} {reason}; leave this document or this model out, or "
            "give the model a tokenizer.json that loses nothing"
        )


def load(model: str) -> Tokenizer:
    """Loads the tokenizer of a model; an adapter without one has its base's.

    A folder's `tokenizer.json` is read directly, and so is `rwkv_vocab_*.txt`, RWKV's.
    What has neither (a GGUF file, a tokenizer that is Python code) goes through
    transformers, which runs no code of the model's.

    Args:
      model: a local folder, a `*.gguf` file, or a name on the Hugging Face hub.

    Returns:
      The tokenizer.

    Raises:
      FileNotFoundError: if a path does not exist.
      ValueError: if the tokenizer has neither BOS nor EOS, or loses text.
    """
    found = checkpoint.fetch(model, _HUB_FILES)
    if found.gguf_file is not None:
        name = Path(found.gguf_file).stem
        return _load_by_transformers(found.folder, name, gguf_file=found.gguf_file)
    if not any(any(found.folder.glob(pattern)) for pattern in _OWN):
        base = adapters.base_of(model)
        if base is not None:
            return load(base[0])
    name = model if found.commit else found.folder.resolve().name
    return _load_folder(found.folder, name)


def _load_folder(folder: Path, name: str) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        worlds = sorted(folder.glob(_WORLD))
        if worlds:
            return _load_world(folder, name, worlds[0])
        return _load_by_transformers(folder, name)
    try:
        fast = FastTokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(
            f"{file} must be a tokenizer of the tokenizers library, but it cannot be"
            f" read ({error}); copy or fetch it again"
        ) from error
    found = roles.read_roles(folder, fast.token_to_id)
    backend = tokenizer_backends.FastBackend(fast)
    return _assemble(name, backend, found)


def _load_world(folder: Path, name: str, file: Path) -> Tokenizer:
    """Loads RWKV's tokenizer, whose one control token is the end, under any name."""
    try:
        backend = tokenizer_backends.WorldBackend(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    found = roles.read_roles(folder, lambda _: 0)
    if found.bos_id is None and found.eos_id is None:
        found = dataclasses.replace(found, eos_id=0)
    return _assemble(name, backend, found)


def _load_by_transformers(folder: Path, name: str, **options: str) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, **options
        )
    except (ImportError, OSError, ValueError) as error:
        raise ValueError(
            f"{folder} must hold tokenizer.json, or what transformers makes a"
            f" tokenizer of; it cannot ({str(error).partition(chr(10))[0]})"
        ) from error
    found = roles.Roles(
        bos_id=loaded.bos_token_id,
        eos_id=loaded.eos_token_id,
        pad_id=loaded.pad_token_id,
        unk_id=loaded.unk_token_id,
    )
    backend: tokenizer_backends.Backend
    if loaded.is_fast:
        backend = tokenizer_backends.FastBackend(loaded.backend_tokenizer)
    else:
        backend = tokenizer_backends.SlowBackend(loaded, _identity(loaded, folder))
    return _assemble(name, backend, found)


def _identity(loaded: Any, folder: Path) -> bytes:
    """Joins class and vocabulary files of a tokenizer that is Python code."""
    files = [folder / name for name in sorted(loaded.vocab_files_names.values())]
    contents = [file.read_bytes() for file in files if file.is_file()]
    return b"\0".join([type(loaded).__name__.encode(), *contents])


def _assemble(
    name: str, backend: tokenizer_backends.Backend, found: roles.Roles
) -> Tokenizer:
    start = found.eos_id if found.bos_id is None else found.bos_id
    if start is None:
        raise ValueError(
            f"the tokenizer of {name} must have a BOS or an EOS token, and neither "
            "tokenizer_config.json nor config.json names one; add a bos_token or an "
            "eos_token to its tokenizer_config.json"
        )
    roles_json = json.dumps(asdict(found), sort_keys=True).encode()
    digest = hashlib.blake2b(backend.identity + roles_json, digest_size=16)
    return Tokenizer(
        name=name,
        fingerprint=digest.hexdigest(),
        start_id=start,
        **asdict(found),
        token_bytes=backend.token_bytes,
        has_dummy_prefix=backend.has_dummy_prefix,
        _backend=backend,
    )
