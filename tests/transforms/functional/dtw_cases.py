"""Cases in the form of the fixtures: made up at random, and solved by our code."""

import numpy as np

from tests.transforms.functional.dtw_oracle import Case, Rows, roles, target_roles
from transforms.functional import cooccurrence, reference_maps, reference_rows
from transforms.functional.dtw import Pairing
from transforms.functional.reference_maps import Marks
from transforms.functional.reference_rows import Lexicon, ReferenceRows
from transforms.functional.transfer import Strategy

EOS = "</s>"
KEPT = 3


def random_case(seed: int) -> Case:
    """Makes up two vocabularies of few letters, two token lists and rows.

    The lists need not spell one text: the paths then wind through the whole table.
    """
    rng = np.random.default_rng(seed)
    mark = str(rng.choice(["Ġ", "▁"]))
    pivot, source = _vocabulary(rng, "▁"), _vocabulary(rng, mark)
    pivot_ids, source_ids = (
        [*rng.integers(1, len(v) - 1, rng.integers(0, 14)).tolist(), len(v) - 1]
        for v in (pivot, source)
    )
    top = [rng.choice(len(source), KEPT, replace=False).tolist() for _ in source_ids]
    logits = -np.sort(-rng.choice(64, (len(source_ids), KEPT)) / 4, axis=1)
    pivot_tokens = [pivot[i] for i in pivot_ids]
    source_tokens = [source[i] for i in source_ids]
    return {
        "pivot_marker": "▁",
        "source_marker": mark,
        "source_is_gpt2": mark == "Ġ" and bool(rng.integers(4)),
        "pivot_ids": pivot_ids,
        "pivot_tokens": pivot_tokens,
        "pivot_decoded": [_decode(t, "▁", "") for t in pivot_tokens],
        "source_ids": source_ids,
        "source_tokens": source_tokens,
        "source_decoded": [_decode(t, mark, " ") for t in source_tokens],
        "source_topk_ids": top,
        "source_topk_logits": logits.tolist(),
        "source_id_to_token": {str(i): token for i, token in enumerate(source)},
        "pivot_vocab": {token: i for i, token in enumerate(pivot)},
    }


def solve(case: Case) -> Case:
    """Solves a case by our code, and says it in the form of the fixtures."""
    marks, source, target = _vocabularies(case)
    exact = reference_maps.exact_ids(source, target, marks)
    mined = reference_maps.mined_ids(source, target, marks)
    strings = {
        marks.spell(token): target[mined[i]]
        for i, token in enumerate(source)
        if token is not None
    }
    spelled = (case["source_tokens"], case["pivot_tokens"], marks)
    pairing = reference_rows.pair_spelled(*spelled)
    hard = reference_rows.find_exact(pairing, *spelled)
    soft = reference_rows.find_mined(pairing, *spelled, strings)
    decoded = (case["source_decoded"], case["pivot_decoded"], marks)
    by_text = reference_rows.pair_decoded(*decoded)
    statistics = _count(case, by_text, source, target, marks)
    mapped = _fill_unseen(case, statistics)
    current = case["pivot_ids"]
    following = [*current[1:], current[-1]]
    return {
        "mined_map": strings,
        "fusellm": {
            "mapping": as_lists(pairing),
            "dtw_cost": pairing.cost,
            "hard": _translate(case, hard, exact, current),
            "soft": _translate(case, soft, mined, current),
        },
        "fusechat": {
            "mapping": as_lists(by_text),
            "statistical_map": {
                i: None if statistics[int(i)] < 0 else int(statistics[int(i)])
                for i in case["source_id_to_token"]
            },
            "default": _translate(
                case,
                reference_rows.find_suffixes(by_text, *decoded),
                reference_maps.fill_ids(exact, mapped),
                following,
            ),
        },
    }


def lexicon(case: Case, strategy: Strategy) -> Lexicon:
    """Makes what our code looks up of a made-up case's vocabularies."""
    marks, source, target = _vocabularies(case)
    mapped = reference_maps.exact_ids(source, target, marks)
    if strategy == "mined":
        mapped = reference_maps.mined_ids(source, target, marks)
    if strategy == "statistics":
        decoded = (case["source_decoded"], case["pivot_decoded"], marks)
        pairing = reference_rows.pair_decoded(*decoded)
        counted = _count(case, pairing, source, target, marks)
        mapped = reference_maps.fill_ids(mapped, _fill_unseen(case, counted))
    return Lexicon(
        marks=marks,
        source_tokens=source,
        target_tokens=target,
        source_decoded=[_decode(t or "", marks.source, " ") for t in source],
        target_decoded=[_decode(t or "", marks.target, "") for t in target],
        mapped=mapped,
    )


def as_lists(pairing: Pairing) -> list[list[int]]:
    """Writes a pairing as the fixtures do."""
    return [part.tolist() for part in np.split(pairing.sources, pairing.offsets[1:-1])]


def _vocabulary(rng: np.random.Generator, mark: str) -> list[str]:
    pieces = {"<0x0A>", mark, mark + mark}
    for _ in range(rng.integers(6, 16)):
        letters = "".join(rng.choice(list("abc"), rng.integers(1, 5)))
        pieces.add(letters if rng.integers(3) else mark + letters)
    return ["<unk>", *rng.permutation(sorted(pieces)).tolist(), EOS]


def _decode(token: str, mark: str, space: str) -> str:
    """Decodes a made-up token; a "c" stands for a mark that the text itself holds."""
    return token.replace(mark, space).replace("c", mark)


def _vocabularies(case: Case) -> tuple[Marks, list[str | None], list[str | None]]:
    marks = Marks(
        source=case["source_marker"],
        target=case["pivot_marker"],
        lends_prefix=case["source_is_gpt2"],
    )
    source = {int(i): token for i, token in case["source_id_to_token"].items()}
    target = {i: token for token, i in case["pivot_vocab"].items()}
    return marks, _by_id(source), _by_id(target)


def _by_id(tokens: dict[int, str]) -> list[str | None]:
    return [tokens.get(token_id) for token_id in range(1 + max(tokens))]


def _fill_unseen(case: Case, found: np.ndarray) -> np.ndarray:
    unknown, _ = target_roles(case)
    return np.where(found < 0, np.int32(unknown), found)


def _count(
    case: Case,
    pairing: Pairing,
    source: list[str | None],
    target: list[str | None],
    marks: Marks,
) -> np.ndarray:
    ids = (np.array(case[name], np.int32) for name in ("source_ids", "pivot_ids"))
    pairs = cooccurrence.list_pairs(pairing, *ids)
    keys, counts = np.unique(pairs, return_counts=True)
    return reference_maps.statistical_ids(
        source,
        target,
        marks,
        source_ids=(keys >> 32).astype(np.int32),
        target_ids=(keys & 0xFFFFFFFF).astype(np.int32),
        counts=counts,
        unseen=-1,
        roles=roles(case),
    )


def _translate(
    case: Case, row: np.ndarray, mapped: np.ndarray, one_hot: list[int]
) -> Rows:
    found: ReferenceRows = reference_rows.translate_rows(
        row,
        np.array(case["source_topk_ids"], np.int32),
        np.array(case["source_topk_logits"], np.float32),
        mapped,
        np.array(one_hot, np.int32),
    )
    cuts = found.offsets[1:-1]
    return {
        "ids": [part.tolist() for part in np.split(found.ids, cuts)],
        "logits": [part.tolist() for part in np.split(found.logits, cuts)],
    }
