r"""What a `tokenizer.json` says, read and edited as plain data.

All functions take the parsed JSON as the `tokenizers` library writes it
(`json.loads(tokenizer.to_str())`) and leave it unchanged. A *spelling* is the text of
a token, a *piece* the string that the model's vocabulary holds for it: byte-level BPE
spells bytes by 256 printable letters, SentencePiece spells the space as U+2581 and
lone bytes as `<0x0A>`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from transforms.functional.control import Spelling

Spec = Mapping[str, Any]
"""The parsed JSON of a tokenizer."""

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def byte_letters() -> dict[str, int]:
    """Returns the letters that byte-level BPE writes for the 256 bytes.

    Printable Latin-1 stands for itself; the other bytes, in order, take the letters
    from U+0100 on (Radford et al. 2019, `bytes_to_unicode`).

    >>> byte_letters()["Ġ"], byte_letters()["A"]
    (32, 65)
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + rank): byte for rank, byte in enumerate(others)}


def without_prefix(spec: Spec) -> dict[str, Any]:
    """Makes the tokenizer read a text as if it stood inside running text.

    SentencePiece models put a space in front of a text (the dummy prefix), written
    as a `Prepend` normalizer or as the `Metaspace` splitter's prepend scheme;
    byte-level ones may do so by `add_prefix_space`.
    """

    def edit(step: dict[str, Any]) -> dict[str, Any] | None:
        match step["type"]:
            case "Prepend":
                return None
            case "Metaspace":
                return {**step, "prepend_scheme": "never"}
            case "ByteLevel" if "add_prefix_space" in step:
                return {**step, "add_prefix_space": False}
        return step

    return {
        **spec,
        "normalizer": _edit_steps(spec["normalizer"], "normalizers", edit),
        "pre_tokenizer": _edit_steps(spec["pre_tokenizer"], "pretokenizers", edit),
    }


def only_steps(spec: Spec) -> dict[str, Any]:
    """Keeps normalizer and pre-tokenizer alone, over an empty vocabulary."""
    empty = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    return {**spec, "added_tokens": [], "decoder": None, "model": empty}


def only_normalizer(spec: Spec) -> dict[str, Any]:
    """Keeps the normalizer alone, without its prefix, still writing letters."""

    def edit(step: dict[str, Any]) -> dict[str, Any] | None:
        return None if step["type"] in ("Prepend", "ByteLevel") else step

    normalizer = _edit_steps(spec["normalizer"], "normalizers", edit)
    return {**only_steps(spec), "normalizer": normalizer, "pre_tokenizer": None}


def with_guard(spec: Spec) -> dict[str, Any]:
    """Keeps text that spells a control token or a byte piece from becoming it.

    The library can be told not to look for special tokens in a text, but a Unigram
    model (or merges, if they happen to lead there) may still build such a piece out
    of letters, as it stands in the vocabulary like any other. So the first letter of
    each such spelling is split from the rest, before the model sees them; no other
    text is touched.

    Raises:
      ValueError: if one letter alone spells a control token.
    """
    rests: defaultdict[str, list[str]] = defaultdict(list)
    for piece in sorted(_reachable_controls(spec)):
        if len(piece) == 1:
            raise ValueError(
                "a control token must be spelled by two letters or more, got "
                f"U+{ord(piece):04X}, which is also ordinary text to this model; "
                "respell that token in tokenizer.json"
            )
        rests[piece[0]].append(re.escape(piece[1:]))
    if not rests:
        return dict(spec)
    pattern = "|".join(
        f"{re.escape(first)}(?={'|'.join(tails)})" for first, tails in rests.items()
    )
    guard = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    # last, so that it sees the letters that the model would see
    steps = [step for step in (spec["pre_tokenizer"], guard) if step is not None]
    return {**spec, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


def id_space(spec: Spec) -> int:
    """Returns one more than the highest id; ids below need not all be in use."""
    ids = [index for _, index in _pieces(spec)]
    return 1 + max(ids + [token["id"] for token in spec["added_tokens"]], default=-1)


def unknown_id(spec: Spec) -> int | None:
    """Returns the id that the model gives to letters it does not know."""
    model = spec["model"]
    if model["type"] == "Unigram":
        return model.get("unk_id")
    return model["vocab"].get(model.get("unk_token"))


def special_ids(spec: Spec) -> set[int]:
    """Returns the ids of control tokens, which no text may become."""
    ids = {token["id"] for token in spec["added_tokens"] if token["special"]}
    return ids - {unknown_id(spec)}


def control_spellings(spec: Spec) -> tuple[Spelling, ...]:
    """Lists the control tokens as a chat template may write them."""
    ids = special_ids(spec)
    return tuple(
        Spelling(
            text=token["content"],
            token_id=token["id"],
            lstrip=token["lstrip"],
            rstrip=token["rstrip"],
        )
        for token in spec["added_tokens"]
        if token["id"] in ids
    )


def repeats_prefix(spec: Spec) -> bool:
    """Tells whether the dummy prefix comes again behind every control token."""
    steps = _steps(spec["pre_tokenizer"], "pretokenizers")
    return not any(step.get("prepend_scheme") == "first" for step in steps)


def token_bytes(spec: Spec) -> list[bytes | None]:
    r"""Lists the bytes that each id stands for inside running text.

    Returns:
      One entry an id: the bytes ("▁the" is b" the", "<0x0A>" is b"\n"), or None
      for control tokens and ids without a token.
    """
    table: list[bytes | None] = [None] * id_space(spec)
    space = space_letter(spec)
    letters = byte_letters() if _is_byte_level(spec) else None
    for piece, index in _pieces(spec):
        if letters is not None:
            table[index] = from_letters(piece, letters)
        else:
            table[index] = from_piece(piece, space)
    for token in spec["added_tokens"]:
        text = token["content"]
        table[token["id"]] = (text.replace(space, " ") if space else text).encode()
    for control in special_ids(spec):
        table[control] = None
    if (unknown := unknown_id(spec)) is not None:
        table[unknown] = None
    return table


def from_letters(piece: str, letters: Mapping[str, int]) -> bytes | None:
    """Reads a piece of byte-level BPE; None if it holds a letter of no byte."""
    if all(letter in letters for letter in piece):
        return bytes(letters[letter] for letter in piece)
    return None


def from_piece(piece: str, space: str | None) -> bytes:
    """Reads a piece of a SentencePiece model, whose space is spelled `space`."""
    if lone := BYTE_PIECE.fullmatch(piece):
        return bytes([int(lone[1], 16)])
    return (piece.replace(space, " ") if space else piece).encode()


def space_letter(spec: Spec) -> str | None:
    """Returns the letter that stands for a space in pieces, if one does."""
    for step in _steps(spec["pre_tokenizer"], "pretokenizers"):
        if step["type"] == "Metaspace":
            return str(step["replacement"])
    for step in _steps(spec["normalizer"], "normalizers"):
        if step["type"] == "Replace" and step["pattern"] == {"String": " "}:
            return str(step["content"])
    return None


def _steps(step: Spec | None, key: str) -> Iterator[Spec]:
    """Walks a normalizer or pre-tokenizer, sequences opened."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for inner in step[key]:
            yield from _steps(inner, key)
    else:
        yield step


def _edit_steps(step: Any, key: str, edit: Any) -> Any:
    """Applies `edit` to every single step; None takes a step out."""
    if step is None:
        return None
    if step["type"] != "Sequence":
        return edit(step)
    edited = [_edit_steps(inner, key, edit) for inner in step[key]]
    return {**step, key: [inner for inner in edited if inner is not None]}


def _is_byte_level(spec: Spec) -> bool:
    steps = [
        *_steps(spec["pre_tokenizer"], "pretokenizers"),
        *_steps(spec["normalizer"], "normalizers"),
    ]
    return any(step["type"] == "ByteLevel" for step in steps)


def _pieces(spec: Spec) -> Iterable[tuple[str, int]]:
    """Lists the model's own vocabulary, added tokens apart."""
    vocabulary = spec["model"]["vocab"]
    if isinstance(vocabulary, Mapping):
        return vocabulary.items()
    return [(piece, index) for index, (piece, _) in enumerate(vocabulary)]


def _reachable_controls(spec: Spec) -> set[str]:
    """Finds the control and byte pieces that the model could build out of letters."""
    model = spec["model"]
    vocabulary = {piece for piece, _ in _pieces(spec)}
    control = {token["content"] for token in spec["added_tokens"] if token["special"]}
    if model.get("byte_fallback"):
        control |= {f"<0x{byte:02X}>" for byte in range(256)}
    control &= vocabulary
    if model["type"] != "BPE":
        return control
    merged = {left + right for left, right in model["merges"]}
    whole = bool(model.get("ignore_merges"))  # takes a whole word by its spelling
    return {piece for piece in control if whole or piece in merged or len(piece) == 1}
