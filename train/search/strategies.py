"""Ways to propose trials: CMA-ES, and what it must beat with as many evaluations."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from schemas.arrays import Genes
from schemas.errors import SchemaError
from train.search import trials
from train.search.genome import Genome, Range
from train.search.trials import Trial

_ARRAYS = {
    "mean": "_mean",
    "covariance": "_C",
    "path_sigma": "_p_sigma",
    "path_covariance": "_pc",
}
"""What a state calls the optimizer's arrays, and what `cmaes` does."""


def population_of(genes: int) -> int:
    """Returns how many trials go before an update of so many genes, if none says.

        4 + floor(3 ln n)

    Example:
      >>> population_of(35)
      14

    References:
      Hansen 2016, arXiv 1604.00772, equation 48.
    """
    return 4 + math.floor(3 * math.log(genes))


class Evolution:
    """CMA-ES: samples a normal distribution, and moves it to the better half.

        x_k = m + sigma N(0, C)          k = 1 ... population

    m, C, sigma and two evolution paths are updated when a whole population is measured,
    from its ranks alone: what is worse than all others may as well be infinite. Trials
    with equal objectives are ranked by their numbers. Trial n is sampled by a generator
    that is seeded for it, so the state holds no generator.

    References:
      Hansen 2016, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772, by the
      library cmaes (Nomura and Shibata 2024, arXiv 2402.01373).
    """

    def __init__(
        self, start: Genes, sigma: float, seed: int, population: int | None = None
    ) -> None:
        """Begins a search.

        Args:
          start: the first mean.
          sigma: the first step size, in units of the genes' ranges.
          seed: of the search.
          population: trials between two updates; None = as `population_of` has it.
        """
        import cmaes  # an extra of its own

        self._seed = seed
        self._cma = cmaes.CMA(
            mean=np.array(start),
            sigma=sigma,
            population_size=population or population_of(len(start)),
        )
        self._state = self._updated()

    @property
    def population(self) -> int:
        """Trials between two updates."""
        return int(self._cma.population_size)

    def propose(self, number: int) -> Genes:
        """Samples the distribution of the trial's generation."""
        self._cma.reseed_rng(trials.seed_of(self._seed, number))
        return np.asarray(self._cma.ask(), np.float64)

    def learn(self, found: Sequence[Trial]) -> None:
        """Updates the distribution where the last trial completes a population."""
        if len(found) % self.population:
            return
        told = [(t.x, t.found.rank) for t in found[-self.population :]]
        self._cma.tell(told)
        self._state = self._updated()

    def state(self) -> dict[str, Any]:
        """Returns the distribution, its paths, and how often it was updated.

        It is that of the last update: to sample, the library puts the covariance
        together again of its eigenvectors, which changes last digits.
        """
        return self._state

    def _updated(self) -> dict[str, Any]:
        cma = self._cma
        arrays = {name: getattr(cma, own).tolist() for name, own in _ARRAYS.items()}
        return {**arrays, "sigma": float(cma._sigma), "generation": cma.generation}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up a distribution.

        Raises:
          SchemaError: if it is of another number of genes.
        """
        found = {own: np.array(state[name]) for name, own in _ARRAYS.items()}
        for own, array in found.items():
            if array.shape != getattr(self._cma, own).shape:
                raise SchemaError(
                    f"the state of a search must be of {self._cma.dim} genes, got an"
                    f" array of shape {array.shape}; remove it"
                )
            setattr(self._cma, own, array)
        self._cma._sigma = float(state["sigma"])
        self._cma._g = int(state["generation"])
        self._state = dict(state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listed:
    """A way that knows all trials beforehand, and learns nothing.

    Attributes:
      genes: returns those of a trial.
    """

    genes: Callable[[int], Genes]

    def propose(self, number: int) -> Genes:
        """Returns the genes of a trial."""
        return self.genes(number)

    def learn(self, found: Sequence[Trial]) -> None:
        """Learns nothing."""

    def state(self) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up nothing."""


def uniform(genome: Genome) -> Listed:
    """Tries the start alone: all models weigh the same, and lambda is 1."""
    return Listed(genes=lambda _: genome.start)


def one_for_all(genome: Genome, setting: str, budget: int) -> Listed:
    """Tries one value everywhere, evenly spread over its reach, both ends included.

    Args:
      genome: what is searched.
      setting: `weight` of all models, times lambda; or `lambda` alone, where weights
        say nothing of scale.
      budget: how many values; one is the start.
    """
    if budget == 1:
        return uniform(genome)
    line = np.linspace(*reach(genome, setting), budget)

    def place(number: int) -> Genes:
        value = float(line[number])
        factors = _factors(genome, value) if setting == "weight" else {setting: value}
        return genome.with_all(factors)

    return Listed(genes=place)


def reach(genome: Genome, setting: str) -> Range:
    """Returns the least and the greatest value that is tried everywhere.

    As where all genes vary, it is weight times lambda that says how far a merge goes
    from the base, if weights do so at all.

    Args:
      genome: what is searched.
      setting: as `one_for_all` has it.
    """
    scale = genome.gene("lambda")
    if setting == "lambda":
        return scale.low, scale.high
    weight = genome.gene("weight")
    ends = [w * s for w in (weight.low, weight.high) for s in (scale.low, scale.high)]
    return min(ends), max(ends)


def _factors(genome: Genome, product: float) -> dict[str, float]:
    """Returns a weight and a lambda of a product, lambda at its start if that does.

    Else one of both is at an end of its range: whatever is in reach lies between the
    products of two corners, and so somewhere on the edges that lead from one to the
    other.
    """
    weight, scale = genome.gene("weight"), genome.gene("lambda")
    found = [(product / scale.start, scale.start)] if scale.start else []
    found += [(w, product / w) for w in (weight.low, weight.high) if w]
    found += [(product / s, s) for s in (scale.low, scale.high) if s]
    inside = ((weight.nearest(w), scale.nearest(s)) for w, s in found)
    return next(
        {"weight": w, "lambda": s}
        for w, s in inside
        if math.isclose(w * s, product, rel_tol=1e-9, abs_tol=1e-12)
    )


def at_random(genome: Genome, seed: int) -> Listed:
    """Draws every gene from its range, uniformly and independently."""

    def draw(number: int) -> Genes:
        own = trials.seed_of(seed, number)
        return np.random.default_rng(own).random(len(genome.genes))

    return Listed(genes=draw)
