"""What FuseLLM and FuseChat do to one case, slowly, from their description.

Written from the description of the fixtures and of the authors' algorithms alone, in
plain Python and without any of our code. A case has the fixtures' form.
"""

import functools
import math
from collections import Counter
from typing import Any

UNKNOWN = 0
ROLES = {"</s>": (UNKNOWN, 1), "<eos>": (3, 2)}
"""Unknown and begin of a target, by its EOS; the cases name neither. Llama's and
Mistral's, and Gemma's; others have the EOS for both."""

BEGINS = frozenset({"<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>"})

Case = dict[str, Any]
Rows = dict[str, list[list[Any]]]


def solve(case: Case) -> Case:
    """Returns what the fixtures hold of a case: its maps, mappings and rows."""
    mined = mined_map(case)
    spelled = (case["source_tokens"], case["pivot_tokens"])
    mapping, cost = dtw(case, *spelled, diagonal_then="source", exchange=False)
    decoded = (case["source_decoded"], case["pivot_decoded"])
    by_text, _ = dtw(case, *decoded, diagonal_then="target", exchange=True)
    statistics = statistical_map(case, by_text)
    return {
        "mined_map": mined,
        "fusellm": {
            "mapping": mapping,
            "dtw_cost": cost,
            "hard": fusellm_rows(case, mapping, None),
            "soft": fusellm_rows(case, mapping, mined),
        },
        "fusechat": {
            "mapping": by_text,
            "statistical_map": statistics,
            "default": fusechat_rows(case, by_text, statistics),
        },
    }


@functools.cache
def levenshtein(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(above + (x != y), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def bare(case: Case, source: str, pivot: str, exchange: bool) -> tuple[str, str]:
    """Deletes marks; FuseChat leaves a token that is all mark, in the pivot's marks."""
    one = source.replace(case["source_marker"], "")
    other = pivot.replace(case["pivot_marker"], "")
    if exchange and not (one and other):
        return spell(case, source), pivot
    return one, other


def spell(case: Case, source: str) -> str:
    return source.replace(case["source_marker"], case["pivot_marker"])


def dtw(
    case: Case,
    source: list[str],
    pivot: list[str],
    *,
    diagonal_then: str,
    exchange: bool,
) -> tuple[list[list[int]], int]:
    total: dict[tuple[int, int], int] = {}
    for i, a in enumerate(source):
        for j, b in enumerate(pivot):
            before = [total[c] for c in steps(i, j, diagonal_then) if c in total]
            own = levenshtein(*bare(case, a, b, exchange))
            total[i, j] = own + min(before, default=0)
    mapping: list[list[int]] = [[] for _ in pivot]
    at = (len(source) - 1, len(pivot) - 1)
    while True:
        mapping[at[1]].insert(0, at[0])
        if at == (0, 0):
            return mapping, total[len(source) - 1, len(pivot) - 1]
        known = [c for c in steps(*at, diagonal_then) if c in total]
        at = min(known, key=lambda c: total[c])  # the first of equals


def steps(i: int, j: int, diagonal_then: str) -> list[tuple[int, int]]:
    straight = [(i - 1, j), (i, j - 1)]
    return [
        (i - 1, j - 1),
        *(straight if diagonal_then == "source" else straight[::-1]),
    ]


def mined_map(case: Case) -> dict[str, str]:
    by_id = sorted(case["pivot_vocab"], key=case["pivot_vocab"].get)
    found = {}
    for token in case["source_id_to_token"].values():
        s = spell(case, token)
        same = s in case["pivot_vocab"]
        found[s] = s if same else min(by_id, key=lambda y, s=s: levenshtein(s, y))
    return found


def statistical_map(case: Case, mapping: list[list[int]]) -> dict[str, int | None]:
    count = Counter(
        (pivot, source)
        for pivot, partners in zip(case["pivot_ids"], mapping, strict=True)
        for source in {case["source_ids"][j] for j in partners}
    )
    strings = {i: token for token, i in case["pivot_vocab"].items()}
    found: dict[str, int | None] = dict.fromkeys(case["source_id_to_token"])
    for source, token in case["source_id_to_token"].items():
        scores = []
        for (pivot, s), n in count.items():
            if str(s) == source:
                one, other = bare(case, token, strings[pivot], exchange=True)
                factor = 0.1 if one in other or other in one else 1
                d = levenshtein(one, other) * factor
                scores.append((1 / (1 + math.exp(-n)) * d, pivot))
        if scores:
            found[source] = min(scores)[1]
    return found | {str(s): p for s, p in roles(case).items()}


def roles(case: Case) -> dict[int, int]:
    """Begin and end of the source, and what they are forced to map to."""
    begins = [int(i) for i, t in case["source_id_to_token"].items() if t in BEGINS]
    _, begin = target_roles(case)
    return dict.fromkeys(begins, begin) | {
        case["source_ids"][-1]: case["pivot_ids"][-1]
    }


def target_roles(case: Case) -> tuple[int, int]:
    """Returns the target's unknown and begin; its EOS for what it lacks."""
    end = case["pivot_ids"][-1]
    return ROLES.get(case["pivot_tokens"][-1], (end, end))


def fusellm_rows(case: Case, mapping: list[list[int]], mined: Any) -> Rows:
    rows: Rows = {"ids": [], "logits": []}
    vocab = case["pivot_vocab"]
    for i, partners in enumerate(mapping):
        token = case["pivot_tokens"][i]
        ids, logits = [case["pivot_ids"][i]], [1.0]
        if len(partners) == 1:
            (j,) = partners
            s = spell(case, case["source_tokens"][j])
            lacks = token.startswith("▁") and not s.startswith("▁")
            if case["source_is_gpt2"] and i == 0 and lacks:
                s = "▁" + s
            if token == s or (mined is not None and mined.get(s) == token):
                entries = []
                for kept, logit in source_row(case, j):
                    t = spell(case, case["source_id_to_token"][str(kept)])
                    if mined is not None:
                        entries.append((vocab[mined[t]], logit))
                    elif t in vocab:
                        entries.append((vocab[t], logit))
                ids, logits = first_of_each(entries)
        rows["ids"].append(ids)
        rows["logits"].append(logits)
    return rows


def fusechat_rows(case: Case, mapping: list[list[int]], statistics: Any) -> Rows:
    rows: Rows = {"ids": [], "logits": []}
    labels = [*case["pivot_ids"][1:], case["pivot_ids"][-1]]
    for i, partners in enumerate(mapping):
        ids, logits = [labels[i]], [1.0]
        for j in partners:
            one, other = (
                spell(case, case["source_decoded"][j]),
                case["pivot_decoded"][i],
            )
            if len(partners) > 1:
                one, other = bare(
                    case, case["source_decoded"][j], other, exchange=False
                )
            if one.endswith(other) or other.endswith(one):
                ids, logits = first_of_each(
                    [(chat_id(case, s, statistics), x) for s, x in source_row(case, j)]
                )
                break
        rows["ids"].append(ids)
        rows["logits"].append(logits)
    return rows


def chat_id(case: Case, source_id: int, statistics: Any) -> int:
    same = case["pivot_vocab"].get(
        spell(case, case["source_id_to_token"][str(source_id)])
    )
    if same is not None:
        return same
    found = statistics[str(source_id)]
    return target_roles(case)[0] if found is None else found


def source_row(case: Case, j: int) -> list[tuple[int, float]]:
    ids, logits = case["source_topk_ids"][j], case["source_topk_logits"][j]
    return list(zip(ids, logits, strict=True))


def first_of_each(entries: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    kept: dict[int, float] = {}
    for token_id, logit in entries:
        kept.setdefault(token_id, logit)
    return list(kept), list(kept.values())
