"""The authors' objective in plain Python, number by number, and random cases of it.

Written from the description of the fixtures, with nothing of the project's own.
"""

import math
import struct
from typing import Any

import numpy as np


def bfloat16(number: float) -> float:
    """Rounds to 8 significant bits, ties to even."""
    if math.isnan(number) or math.isinf(number):
        return number
    (bits,) = struct.unpack("<I", struct.pack("<f", number))
    low, bits = bits & 0xFFFF, bits & ~0xFFFF
    if low > 0x8000 or (low == 0x8000 and bits & 0x10000):
        bits += 0x10000
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def teacher(row: dict[str, Any], pivot: dict[str, Any], t: int) -> dict[int, float]:
    """A row's distribution over what it keeps; the target's own where it is empty."""
    if not row["ids"][t]:
        row = pivot
    raised = [math.exp(bfloat16(z)) for z in row["logits"][t]]
    total = sum(raised)
    return {i: bfloat16(r / total) for i, r in zip(row["ids"][t], raised, strict=True)}


def rewards(costs: list[float]) -> list[float]:
    return [bfloat16(1 / bfloat16(math.exp(bfloat16(c)))) for c in costs]


def weights(costs: list[float], fusion: str) -> list[float]:
    """MinCE: the greatest reward, the first of equals; AvgCE: softmax of rewards."""
    said = rewards(costs)
    if fusion == "mince":
        best = said.index(max(said))
        return [float(s == best) for s in range(len(said))]
    raised = [math.exp(r) for r in said]
    return [bfloat16(r / sum(raised)) for r in raised]


def fusion_loss(case: dict[str, Any], t: int, fusion: str, kind: str) -> float:
    """D of one position."""
    sources = (
        case["aligned"] if isinstance(case["aligned"], list) else [case["aligned"]]
    )
    mixed: dict[int, float] = {}
    shares = weights(case["ce"], fusion)
    for share, row in zip(shares, [case["pivot"], *sources], strict=True):
        for token, p in teacher(row, case["pivot"], t).items():
            mixed[token] = bfloat16(mixed.get(token, 0.0) + bfloat16(share * p))
    logprobs = log_softmax(case["student_logits"][t])
    total = 0.0
    for token, p in mixed.items():
        total -= p * logprobs[token]
        if kind == "kl" and p > 0:
            total += bfloat16(p * bfloat16(math.log(p)))
    return total


def log_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    norm = top + math.log(sum(math.exp(z - top) for z in logits))
    return [z - norm for z in logits]


def loss(case: dict[str, Any], fusion: str, kind: str) -> float:
    """The whole objective of a case of `fusellm`, or of `fusechat` if it has labels."""
    labels = case.get("labels", case["input_ids"])
    n, share = len(case["input_ids"]), case.get("lambda_clm", 0.9)
    taught = [t for t in range(n - 1) if labels[t + 1] != -100]
    clm = [-log_softmax(case["student_logits"][t])[labels[t + 1]] for t in taught]
    places = taught if "labels" in case else range(n)
    fused = [fusion_loss(case, t, fusion, kind) for t in places]
    return share * sum(clm) / len(clm) + (1 - share) * sum(fused) / len(fused)


def random_case(seed: int, *, chat: bool, sources: int = 2) -> dict[str, Any]:
    """A case in the fixtures' form, without its losses."""
    rng = np.random.default_rng(seed)
    n, vocabulary = int(rng.integers(3, 12)), int(rng.integers(8, 40))
    ids = rng.integers(0, vocabulary, n).tolist()
    made: dict[str, Any] = {
        "vocab_size": vocabulary,
        "length": n + 2,
        "input_ids": ids,
        "student_logits": rng.normal(0, 2, (n + 2, vocabulary)).tolist(),
        "ce": rng.choice([1.2, 1.9, 2.1, 2.4, 2.401, 3.0], sources + 1).tolist(),
        "lambda_clm": 0.9,
        "pivot": _rows(rng, n, vocabulary, least=1),
        "aligned": [_rows(rng, n, vocabulary, least=0) for _ in range(sources)],
    }
    if chat:
        prompt = int(rng.integers(0, n - 1))
        made["labels"] = [-100] * prompt + ids[prompt:]
    return made


def _rows(
    rng: np.random.Generator, n: int, vocabulary: int, *, least: int
) -> dict[str, Any]:
    counts = rng.integers(least, 7, n)
    ids = [rng.choice(vocabulary, c, replace=False).tolist() for c in counts]
    logits = [-np.sort(-rng.normal(6, 3, c)).astype(np.float16) for c in counts]
    return {"ids": ids, "logits": [row.astype(float).tolist() for row in logits]}
