"""Windows of many kinds, and what real tokenizers' models might have said of them.

No model is run. Rows are made up from a tokenizer's own vocabulary so that they are
hard: beside the token that came they keep tokens that share its first bytes, that begin
it, that go on behind it, control tokens, and ids that the tokenizer lacks.
"""

import bisect
import dataclasses
import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tests import snippets
from tests.transforms.functional import toys
from transforms import tokenizer
from transforms.functional import align, project, vocabulary

K = 8
"""Entries that a made-up row keeps."""

LANGUAGES = {
    "de": "Die Gewässergütemessungen begannen 1987; seither wurde jährlich überprüft.",
    "es": "Aquella mañana, el pingüino más pequeño cruzó 14 veces la bahía helada.",
    "fr": "Où est la clé n° 7 ? Elle n'était qu'à l'étage, près du cœur de chêne.",
    "it": "Perché l'età della città è già più nota di quanto potrebbe sembrare?",
    "pt": "Três irmãs não souberam explicar a difícil equação às 18h30 de amanhã.",
    "ca": "La col·lecció d'il·lustracions s'exposarà l'any vinent a l'església.",
    "nb": "Båten gikk på grunn ved øya, så ingen nådde fergen klokka kvart på åtte.",
    "id": "Kupu-kupu beterbangan di kebun sayur-mayur, lalu hinggap pada bunga-bunga.",
    "ru": "Переводчица объяснила, что съёмки начнутся через 25 минут возле подъезда.",
    "ja": "駅前の図書館で、ゆっくりコーヒーを飲みながら新しいデータベースを調べた。",
    "zh": "昨天下午三点二十分,工程师们重新训练了模型,结果比预期好得多。",
    "ar": "تُرجِمت المقالةُ إلى سبعِ لغاتٍ، ولم يَبقَ سوى التدقيقِ اللغويّ ٢٠٢٤.",
    "fa": "کتاب‌خانه‌ی روستا پنجره‌های بزرگی دارد؛ بچه‌هایش آن‌جا می‌نشینند ۱۲۳۴.",
}
WINDOWS = {
    **LANGUAGES,
    "prose": "We weren't told whether 12,345.67 units (or so) had been misinterpreted—"
    "'unbelievably', she'd said; they'd've re-checked everything otherwise.",
    "code": "@cache\ndef n_th(i: int, *, xs=()) -> dict[str, float]:\n"
    "\tfor (k, v) in zip(xs[::-1], range(0x1F)):\n"
    "        yield {**v, f'{k!r:>8}': 1e-5} or i >>= 2\n\n",
    "emoji": snippets.EMOJI[:60],
    "marks": "n\u0303o cafe\u0301 Z\u0351\u036b\u0343o\u0325 \u0e19\u0e49\u0e33 "
    "\u0928\u093f \u1100\u1161\u11a8 \u212b\ufb01\u00bd q\u0308\u0323",
    "control": "x\x00y\x01\x02\x1b[0m\x7f\x85\u200b\ufeff\u2028\ufffd\U0010ffff end",
    "spaces": f"{' ' * 37}a{' ' * 5}\n\n\n\n{chr(9) * 9} \n{' ' * 16}b\r\n\r\n  ",
    "spelled": "<s>[INST] x </s><|endoftext|><|im_start|>user<|im_end|> <bos><eos>"
    "<0x41><unk><|eot_id|> <|begin▁of▁sentence|><pad>▁▁a",
    "start": " one space in front",
    "nothing": "",
}
CHATS = {
    "chatml": (
        "<|im_start|>user\nHi there!<|im_end|>\n",
        ("<|im_start|>", "<|im_end|>"),
    ),
    "instruct": ("<s>[INST] Hi! [/INST] Hello.</s>", ("<s>", "</s>")),
}
"""Windows that a chat template wrote, and what it wrote as control tokens."""


def encode(own: tokenizer.Tokenizer) -> dict[str, tokenizer.Encoding]:
    """Tokenizes all windows; every second one ends its document."""
    found = {
        name: own.encode_window(text, ends_document(name))
        for name, text in WINDOWS.items()
    }
    for name, (text, marks) in CHATS.items():
        spans = [
            at
            for mark in marks
            for at in (text.index(mark), text.index(mark) + len(mark))
        ]
        found[name] = own.encode_window(text, ends_document(name), spans)
    return found


def ends_document(name: str) -> bool:
    """Says whether a window ends its document."""
    return [*WINDOWS, *CHATS].index(name) % 2 == 0


class Inventor:
    """Makes up rows of one tokenizer."""

    def __init__(self, own: tokenizer.Tokenizer) -> None:
        self._own = own
        self._ids = {
            piece: index for index, piece in enumerate(own.token_bytes) if piece
        }
        self._pieces = sorted(self._ids)

    def rows(self, name: str, encoding: tokenizer.Encoding) -> toys.Rows:
        """Makes up a row for every position of a window; they depend on names alone."""
        rng = np.random.default_rng(zlib.crc32(f"{self._own.name} {name}".encode()))
        positions = encoding.token_ids.size - 1
        ids = np.full((positions, K), -1, np.int32)
        probs = np.sort(rng.dirichlet(np.full(K + 2, 0.4), positions), axis=1)[:, ::-1]
        logprobs = np.log(np.maximum(probs, 1e-9)).astype(np.float32)
        gold = logprobs[:, K].copy()
        top = logprobs[:, :K].copy()
        for t, token in enumerate(encoding.token_ids[1:].tolist()):
            others = self._others(token, rng)
            if rng.random() < 0.8:
                place = int(rng.integers(min(K, len(others) + 1)))
                others.insert(place, token)
                gold[t] = top[t, place]
            kept = others[: K - int(rng.integers(3) == 0)]
            ids[t, : len(kept)] = kept
            top[t, len(kept) :] = -np.inf
            if token in others[len(kept) :]:
                gold[t] = logprobs[t, K]
        return toys.Rows(
            token_ids=encoding.token_ids,
            byte_ends=encoding.byte_ends,
            top_ids=ids,
            top_logprobs=top,
            gold_logprob=gold,
        )

    def _others(self, token: int, rng: np.random.Generator) -> list[int]:
        """Draws rivals of a token."""
        piece = self._own.token_bytes[token] or b""
        at = bisect.bisect_left(self._pieces, piece)
        around = self._pieces[max(0, at - 2) : at + 5] if piece else []
        begun = [piece[:n] for n in range(1, len(piece)) if piece[:n] in self._ids]
        found = [self._ids[one] for one in (*around, *begun[-3:])]
        found += rng.integers(self._own.size, size=2).tolist()
        found += [self._own.start_id, self._own.size + int(rng.integers(3))]
        rivals = [one for one in dict.fromkeys(found) if one != token]
        return [rivals[place] for place in rng.permutation(len(rivals))][:K]


@dataclass(kw_only=True)
class Excerpt:
    """A tokenizer cut down to the tokens that made-up rows hold, numbered anew.

    So a map from it to another vocabulary is built in no time. Ids from `size` on are
    padding of the logits.
    """

    own: tokenizer.Tokenizer
    encodings: dict[str, tokenizer.Encoding]
    rows: dict[str, toys.Rows]
    token_bytes: list[bytes | None]
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    unk_id: int | None
    itself: vocabulary.VocabularyMap = field(init=False)

    def __post_init__(self) -> None:
        self.itself = vocabulary.build_map(self, self)

    @property
    def size(self) -> int:
        return len(self.token_bytes)

    @property
    def fingerprint(self) -> str:
        return f"{self.own.fingerprint} cut down"

    @property
    def has_dummy_prefix(self) -> bool:
        return self.own.has_dummy_prefix

    def encode_middle_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Fails: an excerpt is mapped onto itself alone, which spells nothing."""
        raise AssertionError(f"{self.fingerprint} must map onto itself alone")


def cut_down(own: tokenizer.Tokenizer) -> Excerpt:
    """Makes up rows for all windows, and cuts the tokenizer down to what they hold."""
    inventor, encodings = Inventor(own), encode(own)
    made = {name: inventor.rows(name, one) for name, one in encodings.items()}
    flat = [a.ravel() for one in made.values() for a in (one.token_ids, one.top_ids)]
    roles = {role: getattr(own, role) for role in vocabulary.ROLES}
    used = np.unique(np.concatenate(flat))
    used = used[(used >= 0) & (used < own.size)]

    def renumber(old: np.ndarray) -> np.ndarray:
        inside = np.searchsorted(used, old)
        new = np.where(old < own.size, inside, old - own.size + used.size)
        return np.where(old < 0, -1, new).astype(np.int32)

    rows = {
        name: dataclasses.replace(
            one, token_ids=renumber(one.token_ids), top_ids=renumber(one.top_ids)
        )
        for name, one in made.items()
    }
    places = {int(old): new for new, old in enumerate(used)}
    return Excerpt(
        own=own,
        encodings=encodings,
        rows=rows,
        token_bytes=[own.token_bytes[old] for old in used],
        **{role: places.get(old) for role, old in roles.items()},
    )


@dataclass(kw_only=True)
class Meeting:
    """One window as a source's rows and a target's tokens."""

    rows: toys.Rows
    token_ids: np.ndarray
    byte_ends: np.ndarray
    source_eos: bool
    target_eos: bool
    begins_alike: bool
    mapping: vocabulary.VocabularyMap

    @property
    def eos(self) -> bool:
        return self.source_eos and self.target_eos

    @functools.cached_property
    def alignment(self) -> align.Alignment:
        return align.align_spans(self.byte_ends, self.rows.byte_ends, eos=self.eos)

    @functools.cached_property
    def projected(self) -> project.Projected:
        return project.project_rows(
            self.alignment,
            self.rows,
            self.mapping,
            self.token_ids,
            begins_alike=self.begins_alike,
            k=K + 1,  # all of them, and the token that came
        )


def meet(source: Excerpt, target: Excerpt) -> dict[str, Meeting]:
    """Brings every window together; with equal tokenizers both are the excerpt."""
    same = source is target
    mapping = source.itself if same else vocabulary.build_map(source, target.own)
    found = {}
    for name, rows in source.rows.items():
        theirs = target.rows[name]
        spaces = [
            one.itself.puts_space(one.rows[name].token_ids, one.rows[name].byte_ends)
            for one in (source, target)
        ]
        found[name] = Meeting(
            rows=rows,
            token_ids=(theirs if same else target.encodings[name]).token_ids,
            byte_ends=theirs.byte_ends,
            source_eos=ends_document(name) and source.own.eos_id is not None,
            target_eos=ends_document(name) and target.own.eos_id is not None,
            begins_alike=spaces[0] == spaces[1],
            mapping=mapping,
        )
    return found
