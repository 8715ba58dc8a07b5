"""Searches of a function that is known: no model, and no torch."""

from pathlib import Path

import numpy as np

from schemas.arrays import Genes
from train.search import strategies, trials
from train.search.genome import Gene, Genome
from train.search.strategies import Evolution
from train.search.trials import Found, Strategy, Trial

GENES, BUDGET, SEED = 5, 40, 3
OPTIMUM = np.linspace(0.2, 0.9, GENES)
IDENTITY = {"of": "a toy", "list": [1, 2]}


def genome(count: int = GENES) -> Genome:
    genes = [
        Gene(cell="all", setting="lambda", model=f"m{n}", low=0.0, high=1.0, start=0.5)
        for n in range(count)
    ]
    return Genome(
        models=tuple(f"m{n}" for n in range(count)), cells=(), genes=tuple(genes)
    )


def bowl(x: Genes) -> Found:
    """Measures how far genes are from the optimum, along axes of different scales."""
    values = np.array(genome().values(x))
    scales = np.logspace(0, 1, GENES)
    return Found(objective=float(np.sum(scales * (values - OPTIMUM) ** 2)))


def evolution(seed: int = SEED) -> Evolution:
    return strategies.Evolution(np.full(GENES, 0.5), 0.2, seed)


def run(
    path: Path | str, strategy: Strategy | None = None, budget: int = BUDGET
) -> list[Trial]:
    return trials.run_arm(
        str(path),
        IDENTITY,
        strategy or evolution(),
        budget,
        bowl,
        progress=lambda _: None,
    )
