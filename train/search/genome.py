"""The genome of a merge: which settings of which tensors a search varies.

A cell is the tensors of one module in one group of layers; those of no layer
(embeddings, last norm, head) are a cell by themselves::

    layers 0-1   attention  mlp  rest
    layers 2-3   attention  mlp  rest        outside

Each cell has a weight for each model, a density for each model where the method drops
elements, and a lambda where sums are divided by the weights, which say nothing of the
scale then; else one lambda is for all cells. A gene g in [low, high] is written as a
number x of any size, in units of the range and folded at its ends::

    g = low + (high - low) |x - 2 round(x / 2)|

which is continuous, the identity for x in [0, 1], and reaches both ends. So all genes
have one scale, the space that is searched is unbounded, and no sample is out of range.

References:
  Zhang et al. 2024, "Unconstrained Model Merging for Enhanced LLM Reasoning", arXiv
  2410.13699 (weights by layer, found by CMA-ES); Akiba et al. 2024, "Evolutionary
  Optimization of Model Merging Recipes", arXiv 2403.13187 (weights and densities by
  layer). Modules, groups and folds are ours.
"""

import dataclasses
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from schemas.arrays import Genes
from train.merge.layers import Layer

Range = tuple[float, float]
"""The least and the greatest value of a gene."""

OUTSIDE, REST = "outside", "rest"
"""The cell of tensors of no layer, and the module of those that are of no other."""

ALL = "all"
"""The cell of a gene that is for all cells."""

MODULES: Mapping[str, Sequence[str]] = {
    "attention": ("*.self_attn.*", "*.attn.*", "*.attention.*"),
    "mlp": ("*.mlp.*", "*.ffn.*", "*.feed_forward.*", "*.block_sparse_moe.*"),
}
"""Patterns for the keys of each module, whatever the architecture calls it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Tensors that have their genes in common.

    Attributes:
      name: as tables and messages call it.
      layers: the first and the last layer; None of the tensors of no layer.
      patterns: for their keys, in the order in which rules try them.
    """

    name: str
    layers: tuple[int, int] | None
    patterns: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Gene:
    """One number that is searched.

    Attributes:
      cell: name of its cell, or `all`.
      setting: of the method.
      model: whose setting it is; None of one for all models.
      low: its least value.
      high: its greatest value.
      start: where the search begins.
    """

    cell: str
    setting: str
    model: str | None
    low: float
    high: float
    start: float

    def value(self, x: float) -> float:
        """Returns its value at a number of any size."""
        share = abs(x - 2 * np.round(x / 2))
        return min(self.high, float(self.low + (self.high - self.low) * share))

    def place(self, value: float) -> float:
        """Returns the number in [0, 1] that has a value, or the nearest one."""
        share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))

    def nearest(self, value: float) -> float:
        """Returns the value of its range that is nearest to another."""
        return min(self.high, max(self.low, value))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Genome:
    """What a search varies.

    Attributes:
      models: names of the models.
      cells: in the order of rules, that of no layer last if there is one.
      genes: cell by cell; those for all cells last.
    """

    models: tuple[str, ...]
    cells: tuple[Cell, ...]
    genes: tuple[Gene, ...]

    @property
    def start(self) -> Genes:
        """Where the search begins: the models weigh the same, lambda is 1."""
        return np.array([gene.place(gene.start) for gene in self.genes])

    def gene(self, setting: str) -> Gene:
        """Returns the first gene of a setting; all have one range and one start."""
        return next(gene for gene in self.genes if gene.setting == setting)

    def with_all(self, values: Mapping[str, float]) -> Genes:
        """Returns the start, but for some settings, each of one value everywhere."""
        return np.array(
            [gene.place(values.get(gene.setting, gene.start)) for gene in self.genes]
        )

    def values(self, x: Genes) -> list[float]:
        """Returns the values of the genes."""
        return [gene.value(float(n)) for gene, n in zip(self.genes, x, strict=True)]

    def settings(self, x: Genes) -> dict[str, dict[str, Any]]:
        """Returns the settings of each cell, as rules have them, by the cell's name."""
        found: dict[str, dict[str, Any]] = {cell.name: {} for cell in self.cells}
        found[ALL] = {}
        for gene, value in zip(self.genes, self.values(x), strict=True):
            own = found[gene.cell]
            if gene.model is None:
                own[gene.setting] = value
            else:
                models = own.setdefault(gene.setting, {"models": {}})["models"]
                models[gene.model] = value
        return found


def cells_of(
    found: Mapping[str, Layer | None],
    groups: int,
    modules: Mapping[str, Sequence[str]],
) -> tuple[Cell, ...]:
    """Parts tensors into cells.

    Layer i of n is of group floor(i groups / n), n that of the longest stack.

    Args:
      found: the layer of each tensor, by key.
      groups: into how many the layers are parted.
      modules: patterns of keys, by module; the first that fits is taken.

    Raises:
      ValueError: if there are fewer layers than groups, or a pattern fits nothing that
        none before it fits.
    """
    inside = {key: layer for key, layer in found.items() if layer is not None}
    count = max((layer.count for layer in inside.values()), default=0)
    if not 1 <= groups <= max(1, count):
        raise ValueError(
            f"groups must be in [1, {max(1, count)}], the layers of these models, got"
            f" {groups}"
        )
    cells = []
    for group in range(groups if inside else 0):
        first, last = _first(group, groups, count), _first(group + 1, groups, count) - 1
        keys = [k for k, layer in inside.items() if first <= layer.index <= last]
        for module, patterns in _modules_of(keys, modules).items():
            name = f"layers {first}-{last} {module}"
            cells.append(Cell(name=name, layers=(first, last), patterns=patterns))
    if len(inside) < len(found):
        cells.append(Cell(name=OUTSIDE, layers=None, patterns=("*",)))
    return tuple(cells)


def _first(group: int, groups: int, count: int) -> int:
    """Returns the first layer of a group: the least i with i groups >= group count."""
    return -(-group * count // groups)


def _modules_of(
    keys: Iterable[str], modules: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Returns the patterns that keys need, by module, in the order of the modules."""
    listed = [(module, one) for module, many in modules.items() for one in many]
    listed.append((REST, "*"))
    used = set()
    for key in keys:
        fits = (
            at for at, (_, one) in enumerate(listed) if fnmatch.fnmatchcase(key, one)
        )
        used.add(next(fits))
    found: dict[str, tuple[str, ...]] = {}
    for at in sorted(used):
        module, pattern = listed[at]
        found[module] = (*found.get(module, ()), pattern)
    return found


def genes_of(
    cells: Sequence[Cell],
    models: Sequence[str],
    ranges: Mapping[str, Range],
    starts: Mapping[str, float],
    *,
    normalized: bool,
) -> tuple[Gene, ...]:
    """Lists what is searched.

    Args:
      cells: of the tensors.
      models: names of the models.
      ranges: of weight, lambda and, where the method has one, density.
      starts: where the search begins, by setting.
      normalized: whether sums are divided by the weights.
    """

    def gene(cell: str, setting: str, model: str | None) -> Gene:
        low, high = ranges[setting]
        return Gene(
            cell=cell,
            setting=setting,
            model=model,
            low=low,
            high=high,
            start=starts[setting],
        )

    each = [setting for setting in ranges if setting != "lambda"]
    found = []
    for cell in cells:
        found += [gene(cell.name, s, model) for s in each for model in models]
        if normalized:
            found.append(gene(cell.name, "lambda", None))
    if not normalized:
        found.append(gene(ALL, "lambda", None))
    return tuple(found)
