"""The table of merge methods: what each needs and can be set to."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from train.merge import averages, deltas, sce, spheres, varm
from train.merge.settings import Parameter


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way of merging.

    Attributes:
      merge: takes the models' tensors, then the base unless `base` is "none", then the
        generator where `seeded`, and the settings by name; returns the merged tensor.
      base: whether it needs the tensor of a base, can take one, or takes none.
      working: how many tensors it makes at the most beside those that it is given, the
        merged one among them: for each model, and in all. Measured, with the settings
        that take most, by `python -m tests.bench merge_memory`.
      least: least number of models, the base apart.
      most: greatest number of models; None: open.
      seeded: whether it draws at random and so needs a generator.
      parameters: its settings, by name.
      source: citation.
    """

    merge: Callable[..., Tensor]
    base: Literal["needed", "optional", "none"]
    working: tuple[float, float]
    least: int = 1
    most: int | None = None
    seeded: bool = False
    parameters: Mapping[str, Parameter]
    source: str


_MEAN_WEIGHT = Parameter(
    default=1.0, per_model=True, meaning="weight of each model, any number"
)
_SUM_WEIGHT = Parameter(
    default=None, per_model=True, meaning="factor of each model, any number"
)
_NORMALIZE = Parameter(
    default=True, meaning="whether weights are divided by their sum, true or false"
)
_AS_IT_IS = Parameter(
    default=False, meaning="whether weights are divided by their sum, true or false"
)
_DENSITY = Parameter(
    default=1.0,
    per_model=True,
    low=0.0,
    high=1.0,
    meaning="share of differences that is kept, in [0, 1]",
)
_CUT_RESCALE = Parameter(
    default="none",
    choices=("none", "l1"),
    meaning="l1: what is kept gets the L1 norm of all; none: it stays",
)
_DRAWN_RESCALE = Parameter(
    default="density",
    choices=("density", "l1", "none"),
    meaning="density: by 1 / P(kept); l1: what is kept gets the L1 norm of all; none",
)
_COMMON = {
    "lambda": Parameter(default=1.0, meaning="factor of the sum, any number"),
    "int8_mask": Parameter(
        default=False, meaning="taken from mergekit's recipes; changes nothing"
    ),
}
_DRAWN = {
    "weight": _SUM_WEIGHT,
    "density": _DENSITY,
    "rescale": _DRAWN_RESCALE,
    "normalize": _AS_IT_IS,
    **_COMMON,
}
_EPSILON = Parameter(
    default=0.15,
    per_model=True,
    low=0.0,
    high=0.5,
    meaning="half the spread of probabilities about the density, in [0, 0.5]",
)
_CRUMBS = {
    "weight": _SUM_WEIGHT,
    "density": _DENSITY,
    "gamma": Parameter(
        default=0.01,
        per_model=True,
        low=0.0,
        high=1.0,
        meaning="share of greatest differences that is dropped, in [0, 1]",
    ),
    "rescale": _CUT_RESCALE,
    "normalize": _AS_IT_IS,
    **_COMMON,
}

METHODS: dict[str, Method] = {
    "linear": Method(
        merge=averages.linear,
        base="none",
        working=(0.0, 1.0),
        parameters={"weight": _MEAN_WEIGHT, "normalize": _NORMALIZE},
        source="Wortsman et al. 2022, arXiv 2203.05482",
    ),
    "task_arithmetic": Method(
        merge=deltas.task_arithmetic,
        base="needed",
        working=(0.0, 2.0),
        parameters={"weight": _SUM_WEIGHT, "normalize": _AS_IT_IS, **_COMMON},
        source="Ilharco et al. 2023, arXiv 2212.04089",
    ),
    "ties": Method(
        merge=deltas.ties,
        base="needed",
        working=(1.0, 2.25),
        parameters={
            "weight": _MEAN_WEIGHT,
            "density": _DENSITY,
            "rescale": _CUT_RESCALE,
            "normalize": _NORMALIZE,
            **_COMMON,
        },
        source="Yadav et al. 2023, arXiv 2306.01708",
    ),
    "dare_linear": Method(
        merge=deltas.dare_linear,
        base="needed",
        working=(0.0, 3.25),
        seeded=True,
        parameters=_DRAWN,
        source="Yu et al. 2024, arXiv 2311.03099",
    ),
    "dare_ties": Method(
        merge=deltas.dare_ties,
        base="needed",
        working=(1.0, 1.75),
        seeded=True,
        parameters=_DRAWN,
        source="Yu et al. 2024, arXiv 2311.03099; Yadav et al. 2023, arXiv 2306.01708",
    ),
    "della": Method(
        merge=deltas.della,
        base="needed",
        working=(1.0, 2.0),
        seeded=True,
        parameters=_DRAWN
        | {"weight": _MEAN_WEIGHT, "epsilon": _EPSILON, "normalize": _NORMALIZE},
        source="Deep et al. 2024, arXiv 2406.11617",
    ),
    "della_linear": Method(
        merge=deltas.della_linear,
        base="needed",
        working=(0.0, 3.0),
        seeded=True,
        parameters=_DRAWN | {"epsilon": _EPSILON},
        source="Deep et al. 2024, arXiv 2406.11617",
    ),
    "breadcrumbs": Method(
        merge=deltas.breadcrumbs,
        base="needed",
        working=(0.0, 4.75),
        parameters=_CRUMBS,
        source="Davari and Belilovsky 2024, arXiv 2312.06795",
    ),
    "breadcrumbs_ties": Method(
        merge=deltas.breadcrumbs_ties,
        base="needed",
        working=(1.0, 2.5),
        parameters=_CRUMBS,
        source="Davari and Belilovsky 2024, arXiv 2312.06795; Yadav et al. 2023",
    ),
    "slerp": Method(
        merge=spheres.slerp,
        base="optional",
        working=(0.0, 1.0),
        most=2,
        parameters={
            "t": Parameter(
                default=None,
                low=0.0,
                high=1.0,
                meaning="place between the base (or first model), 0, and the other, 1",
            )
        },
        source="Shoemake 1985, SIGGRAPH",
    ),
    "nuslerp": Method(
        merge=spheres.nuslerp,
        base="optional",
        working=(0.0, 4.0),
        least=2,
        most=2,
        parameters={
            "weight": _MEAN_WEIGHT,
            "nuslerp_flatten": Parameter(
                default=True, meaning="whether a whole tensor is one vector"
            ),
            "nuslerp_row_wise": Parameter(
                default=False,
                meaning="whether vectors run along the first axis, else the last",
            ),
        },
        source="mergekit's documentation; Shoemake 1985",
    ),
    "multislerp": Method(
        merge=spheres.multislerp,
        base="optional",
        working=(1.0, 1.0),
        parameters={
            "weight": _MEAN_WEIGHT,
            "normalize_weights": _NORMALIZE,
            "eps": Parameter(
                default=1e-8, low=0.0, meaning="what is added to norms, at least 0"
            ),
        },
        source="Goddard 2025, mergekit's documentation",
    ),
    "karcher": Method(
        merge=spheres.karcher,
        base="none",
        working=(0.0, 1.0),
        parameters={
            "max_iter": Parameter(
                default=10, low=0.0, meaning="greatest number of steps, a whole number"
            ),
            "tol": Parameter(
                default=1e-5, low=0.0, meaning="step that ends the search, radians"
            ),
        },
        source="Karcher 1977, doi 10.1002/cpa.3160300502",
    ),
    "model_stock": Method(
        merge=averages.model_stock,
        base="needed",
        working=(1.0, 2.0),
        least=2,
        parameters={
            "filter_wise": Parameter(
                default=False,
                meaning="whether each vector along the last axis goes alone",
            )
        },
        source="Jang et al. 2024, arXiv 2403.19522",
    ),
    "varm": Method(
        merge=varm.varm,
        base="needed",
        working=(0.0, 1.0),
        parameters={
            "granularity": Parameter(
                default="matrix",
                choices=("model", "layer", "matrix", "parameter"),
                meaning="what has its own weights: model, layer, matrix or parameter",
            ),
            "weights": Parameter(
                default=None,
                optional=True,
                found=True,
                per_model=True,
                low=0.0,
                high=1.0,
                meaning="weights in [0, 1] found in a first pass, for model and layer",
            ),
        },
        source="Wan et al. 2024, arXiv 2402.16107",
    ),
    "sce": Method(
        merge=sce.sce,
        base="needed",
        working=(1.0, 2.5),
        parameters={
            "select_topk": Parameter(
                default=0.1,
                low=0.0,
                high=1.0,
                meaning="share of elements by variance that is selected, in [0, 1]",
            ),
            "variant": Parameter(
                default="paper",
                choices=("paper", "authors", "mergekit"),
                meaning="as the paper, its authors' code or mergekit does it",
            ),
            "int8_mask": _COMMON["int8_mask"],
        },
        source="Wan et al. 2024, arXiv 2408.07990",
    ),
}
"""Every method, by the name it has in recipes."""
