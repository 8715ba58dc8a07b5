"""Where tokenizers that put a space in front of a text meet those that do not."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from tests import tiny_tokenizers
from tests.transforms.functional import toys
from transforms import tokenizer
from transforms.functional import align, project, vocabulary

KINDS = ["byte_level", "prefixed", "unigram"]
TEXTS = ["The house", " The house", "\nThe", "  the"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("pair", list(itertools.product(KINDS, KINDS)), ids="-".join)
def test_what_may_begin_a_window_is_spelled_as_the_target_would(
    pair: tuple[str, str], text: str, tmp_path: Path
) -> None:
    source, target = (
        tokenizer.load(
            str(tiny_tokenizers.save(tiny_tokenizers.KINDS[kind](), tmp_path / kind))
        )
        for kind in pair
    )
    one, other = (own.encode_window(text, True) for own in (source, target))
    mapping = vocabulary.build_map(source, target)
    own = vocabulary.build_map(target, target)
    spaces = [
        mapping.puts_space(one.token_ids, one.byte_ends),
        own.puts_space(other.token_ids, other.byte_ends),
    ]
    alignment = align.align_spans(other.byte_ends, one.byte_ends, eos=True)
    if alignment.row[0] != 0 or alignment.passed[0] or one.byte_ends[1] == 0:
        return  # the first token stands without bytes: the next follows its space
    checked = 0
    for s in range(source.size):
        piece = source.token_bytes[s]
        if piece is None or s == one.token_ids[1]:
            continue
        found = _first_row(alignment, one.token_ids, s, mapping, other, spaces)
        followers = [int(v) for v in found.ids[0] if v not in (-1, other.token_ids[1])]
        spelled = piece.removeprefix(b" ") if spaces[0] else piece
        wanted = (b" " if spaces[1] else b"") + spelled
        for v in followers:
            assert wanted.startswith(target.token_bytes[v] or b"?"), (piece, v)
        checked += len(followers)
    alike = spaces[0] == spaces[1]
    assert checked > 20 or not (alike or mapping.start_offsets is not None)


def _first_row(
    alignment: align.Alignment,
    token_ids: np.ndarray,
    kept: int,
    mapping: vocabulary.VocabularyMap,
    target: tokenizer.Encoding,
    spaces: list[bool],
) -> project.Projected:
    """Projects rows that keep one token each, with half of the mass, and their gold."""
    positions = len(token_ids) - 1
    rows = toys.Rows(
        token_ids=token_ids,
        byte_ends=np.zeros(len(token_ids), np.int32),
        top_ids=np.full((positions, 1), kept, np.int32),
        top_logprobs=np.full((positions, 1), np.log(0.5), np.float32),
        gold_logprob=np.full(positions, np.log(0.25), np.float32),
    )
    return project.project_rows(
        alignment,
        rows,
        mapping,
        target.token_ids,
        begins_alike=spaces[0] == spaces[1],
        k=4,
    )
