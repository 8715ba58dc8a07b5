"""What later versions must still make of fixed input: ids, splits, spans, rows, frames.

A window's id, a document's split and a frame's layout are promises: folders that were
written yesterday are read, resumed and compared tomorrow. Inputs here are written by
hand or by arithmetic, so that nothing but FuseBeam's own code shapes the values.
"""

import base64
import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Tokens
from tokenizers import decoders, models, pre_tokenizers

from schemas.documents import Document
from tests import snippets, tiny_tokenizers
from tests.transforms import chat_templates
from transforms import chat, tokenizer
from transforms.functional import (
    align,
    chunks,
    codec,
    fuse,
    project,
    ranks,
    turns,
    vocabulary,
    weigh,
)
from transforms.functional import splits as split
from transforms.functional import windows as cut
from transforms.functional.codec import Distributions
from transforms.tokenizer import Tokenizer

SHARES = "base=.5,fusion=.3,dev=.1,heldout=.1"
MERGES = ["Ġ t", "Ġt h", "Ġth e", "i n", "o n", "e r", "r e", "a t", "Ġ a", "Ġ Ġ"]
K = 5
MIXED = 6  # entries that fusion keeps
TEXT = snippets.PROSE


def byte_pairs() -> Tokens:
    """Builds a byte-level BPE of ten merges, after every byte of its alphabet."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [tuple(merge.split()) for merge in MERGES]
    pieces = ["<|endoftext|>", *letters, *("".join(pair) for pair in pairs)]
    made = Tokens(models.BPE({p: i for i, p in enumerate(pieces)}, pairs))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>"])
    return made


class Cases:
    """The golden cases, by the names of their files.

    Attributes:
      byte_pairs: the target's tokenizer.
      prefixed: the source's, with byte fallback and a dummy prefix.
    """

    def __init__(self, folder: Path) -> None:
        made = {"byte_pairs": byte_pairs, "prefixed": tiny_tokenizers.prefixed}
        self.byte_pairs, self.prefixed = (
            tokenizer.load(str(tiny_tokenizers.save(make(), folder / name)))
            for name, make in made.items()
        )

    @property
    def all(self) -> dict[str, Callable[[], Any]]:
        """What makes each case, by name."""
        return {
            "splits": self.splits,
            "windows": self.windows,
            "dialogues": self.dialogues,
            "tokens": self.tokens,
            "maps": self.maps,
            "fused": self.fused,
            "frame": self.frame,
            "chunks": self.chunks,
        }

    def splits(self) -> Any:
        """The split of each text, and what near-duplicates are found by."""
        shares = split.parse_splits(SHARES)
        return {
            name: {
                "split": split.assign_split(text, shares),
                "shingles": [int(n) for n in split.shingles(text)[:3]],
            }
            for name, text in snippets.ALL.items()
        }

    def windows(self) -> Any:
        """Where each text is cut, and the ids of its windows."""
        counters = [
            functools.partial(_count, self.byte_pairs),
            functools.partial(_count, self.prefixed),
        ]
        made = {}
        for name, text in snippets.ALL.items():
            pieces, start = [], 0
            for piece in cut.cut_document(text, counters, max_tokens=48):
                pieces.append([start, cut.window_id(name, start, piece)])
                start += len(piece.encode())
            made[name] = pieces
        return made

    def dialogues(self) -> Any:
        """What templates make of a dialogue: the windows, and what of them counts."""
        made = {}
        for name, (text, family) in chat_templates.FAMILIES.items():
            template = chat_templates.template(text, family)
            document = Document(doc_id=name, text="-", turns=chat_templates.TURNS)
            found = turns.locate(
                chat_templates.TURNS,
                template.render,
                looked_for=template.looked_for(),
                controls=chat_templates.CONTROLS,
                bos=template.tokens["bos_token"],
            )
            assert found is not None
            own = [self.byte_pairs, self.prefixed]
            made[name] = [
                [w.window_id, w.text, w.loss_spans, w.control_spans]
                for w in chat.cut(document, found, own, 80, None)
            ]
        return json.loads(json.dumps(made))  # lists, as they are read

    def tokens(self) -> Any:
        """Ids and byte spans of each text under each tokenizer."""
        return {
            name: {
                role: {
                    "token_ids": found.token_ids.tolist(),
                    "byte_ends": found.byte_ends.tolist(),
                }
                for role, own in self._tokenizers.items()
                for found in [own.encode_window(text, ends_document=True)]
            }
            for name, text in snippets.ALL.items()
        }

    def maps(self) -> Any:
        """The target's spelling of every source token, both ways round."""
        one, other = self._tokenizers.values()
        return {
            f"{source.name} to {target.name}": {
                "mid": [found.seq(i).tolist() for i in range(found.source_size)],
                "start": [
                    found.start_seq(i).tolist() for i in range(found.source_size)
                ],
            }
            for source, target in ((one, other), (other, one))
            for found in [vocabulary.build_map(source, target)]
        }

    def fused(self) -> Any:
        """The mixture of two sources over a text, from scores made by arithmetic."""
        return _listed(self._mixture())

    def frame(self) -> Any:
        """A frame that was written once, and what it must still say."""
        ids, table = self._row()
        counts = (ids_kept := self._mixture()).ids >= 0
        rows = Distributions(
            counts=counts.sum(-1).astype(np.int32),
            ids=ids_kept.ids,
            probs=ids_kept.probs,
            tail=ids_kept.tail,
        )
        written = codec.encode_rows(rows, ids, table)
        return {"frame": base64.b64encode(written).decode(), **self.read(written)}

    def chunks(self) -> Any:
        """The chunks of each text, and what a source gives them, by arithmetic."""
        made = {}
        for name, text in snippets.ALL.items():
            target, source = (
                own.encode_window(text, ends_document=True)
                for own in self._tokenizers.values()
            )
            gold = -(1 + np.arange(source.token_ids.size - 1) % 7) / 8
            found = chunks.cut_chunks(
                target.byte_ends,
                source.byte_ends,
                gold,
                target_eos=True,
                source_eos=True,
            )
            made[name] = {
                "ends": found.ends.tolist(),
                "logprobs": _rounded(chunks.round_logprobs(found.logprobs)),
            }
        return made

    def read(self, written: bytes) -> Any:
        """Says what a frame holds."""
        ids, table = self._row()
        return _listed(codec.decode_rows(written, ids, table))

    @property
    def _tokenizers(self) -> dict[str, Tokenizer]:
        return {"byte_pairs": self.byte_pairs, "prefixed": self.prefixed}

    def _row(self) -> tuple[np.ndarray, ranks.RankTable]:
        """Returns the input ids that the mixture's positions stand at, and ranks."""
        encoded = self.byte_pairs.encode_window(TEXT, ends_document=True)
        counted = np.bincount(encoded.token_ids, minlength=self.byte_pairs.size)
        return encoded.token_ids[:-1], ranks.rank_by_frequency(counted.astype(np.int64))

    def _mixture(self) -> fuse.Fused:
        target = self.byte_pairs.encode_window(TEXT, ends_document=True)
        projected, costs = [], []
        for own in (self.prefixed, self.byte_pairs):
            found = own.encode_window(TEXT, ends_document=True)
            rows = _rows(found.token_ids, own.size)
            alignment = align.align_spans(target.byte_ends, found.byte_ends, eos=True)
            mapping = vocabulary.build_map(own, self.byte_pairs)
            projected.append(
                project.project_rows(
                    alignment,
                    rows,
                    mapping,
                    target.token_ids,
                    # the target has no dummy prefix
                    begins_alike=not mapping.puts_space(
                        found.token_ids, found.byte_ends
                    ),
                    k=K,
                )
            )
            nats = float(-rows.gold_logprob.sum(dtype=np.float64))
            costs.append(weigh.bits_per_byte(nats, len(TEXT.encode())))
        weights = weigh.avg_ce_weights(np.array(costs), temperature=4.0)
        return fuse.fuse_rows(projected, weights, k=MIXED)


def _count(own: Tokenizer, text: str) -> int:
    return int(own.encode(text).token_ids.size)


def _rows(token_ids: np.ndarray, size: int) -> Any:
    """Makes rows by arithmetic: K falling probabilities, gold among them or not."""
    positions = np.arange(token_ids.size - 1)[:, None]
    gold = token_ids[1:, None]
    steps = np.arange(K) * 7 + positions % 3
    ids = (gold + steps) % size  # gold first at every third position, else absent
    falls = 2.0 ** -(1 + np.arange(K) + positions % 2)
    probs = (falls * 0.875).astype(np.float32)
    at_gold = np.where(positions[:, 0] % 3 == 0, probs[:, 0], 2.0**-9)
    return SimpleNamespace(
        token_ids=token_ids,
        top_ids=ids.astype(np.int32),
        top_logprobs=np.log(probs),
        gold_logprob=np.log(at_gold).astype(np.float32),
    )


def _listed(record: Any) -> dict[str, Any]:
    """Turns a record of arrays into lists, numbers at six digits."""
    names = [n for n in record.__dataclass_fields__ if n != "gold_logprob"]
    return {name: _rounded(getattr(record, name)) for name in names}


def _rounded(array: np.ndarray) -> list[Any]:
    if array.dtype.kind != "f":
        return array.tolist()
    return np.round(array.astype(np.float64), 6).tolist()
