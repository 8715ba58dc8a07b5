"""A table `[search]`: what of a merge is searched, on what, and for how long."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipelines import asking, chats, merging
from pipelines.asking import TaskConfig
from pipelines.merging import MergeConfig, Merging
from schemas import files, settings
from schemas.arrays import Genes
from schemas.settings import setting
from train.merge import match, methods, rules
from train.search import genome as genomes
from train.search.genome import MODULES, Genome, Range
from train.search.objective import Objective, Split

METHODS = ("task_arithmetic", "ties", "dare_ties")
"""Methods of differences whose settings can be searched."""

UNIFORM, ONE_FOR_ALL, RANDOM, EVOLUTION = "uniform", "global", "random", "cma"
BASELINES = (UNIFORM, ONE_FOR_ALL, RANDOM)
"""Arms that CMA-ES is compared with, each with as many evaluations as there are."""

_TABLES = ("domains", "tasks", "modules")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Settings of `fusebeam search` that are flags, too."""

    windows: str | None = setting(
        None, help="windows folder that is searched on", shapes_output=False
    )
    report: str | None = setting(
        None,
        help="windows folder that is reported on; no document may be in both",
        shapes_output=False,
    )
    output: str = setting(
        help="folder of the search; left out: 'search' in the recipe's output",
        shapes_output=False,
    )
    budget: int = setting(
        100,
        help="evaluations of each arm on the search split; more may follow",
        shapes_output=False,
    )
    baselines: tuple[str, ...] = setting(
        BASELINES,
        help=f"arms to compare with, of {', '.join(BASELINES)}",
        shapes_output=False,
    )
    groups: int | None = setting(
        None, help="groups of layers (default: 4, or as many as there are layers)"
    )
    population: int | None = setting(
        None, help="evaluations between two updates (default: 4 + 3 ln(genes))"
    )
    sigma: float = setting(0.2, help="first step size, in units of a gene's range")
    seed: int = setting(0, help="of the search; trial n has a seed of this and n")
    weight_range: tuple[float, ...] = setting(
        (0.0, 1.0), help="least and greatest weight of a model"
    )
    density_range: tuple[float, ...] = setting(
        (0.05, 1.0), help="least and greatest density of a model, in [0, 1]"
    )
    lambda_range: tuple[float, ...] = setting(
        (0.0, 2.0), help="least and greatest lambda"
    )
    max_new_tokens: int = setting(
        32, help="most tokens of a response to a task's item, its work among them"
    )
    run_code: bool = setting(
        False,
        help="let programs that models write run on this machine, where tasks ask for"
        " them",
        shapes_output=False,
    )
    chat_template: str | None = chats.chat_template()
    chat_date: str | None = chats.chat_date()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", help="what models compute in while they are measured"
    )
    device: str = setting("auto", help="cpu, cuda, cuda:N, or auto")
    batch_tokens: int = setting(4096, help="tokens of a forward pass, with padding")
    threads: int | None = setting(None, help="CPU threads (default: torch's choice)")
    keep_malloc: bool = setting(
        False, help="leave the allocator of glibc as it is", shapes_output=False
    )
    share_device: bool = setting(
        False,
        help="let other processes have models on the same GPU",
        shapes_output=False,
    )
    show: bool = setting(
        False, help="print the genome, and search nothing", shapes_output=False
    )
    overwrite: bool = setting(
        False, help="search anew where another search is there", shapes_output=False
    )

    def __post_init__(self) -> None:
        """Checks what can be checked without reading a file."""
        for name, least in (
            ("budget", 1),
            ("groups", 1),
            ("population", 4),  # of fewer the best half is one, which says no variance
            ("max_new_tokens", 1),
            ("batch_tokens", 1),
            ("threads", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 < self.sigma <= 1:
            raise ValueError(f"sigma must be in (0, 1], got {self.sigma}")
        for name in self.baselines:
            if name not in BASELINES:
                near = settings.suggestion(name, BASELINES)
                raise ValueError(
                    f"baselines must be of {', '.join(BASELINES)}, got {name!r}{near}"
                )
        chats.check_date(self.chat_date)
        for name in ("weight", "density", "lambda"):
            self.range_of(name)
        low, high = self.range_of("density")
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"density_range must be in [0, 1], got {list(self.density_range)}"
            )

    def range_of(self, name: str) -> Range:
        """Returns the least and the greatest value of a setting that is searched.

        Raises:
          ValueError: if it is no range.
        """
        given = getattr(self, f"{name}_range")
        if len(given) != 2 or not float("-inf") < given[0] < given[1] < float("inf"):
            raise ValueError(
                f"{name}_range must be two finite numbers, the lesser first, got"
                f" {list(given)}"
            )
        return given[0], given[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searching:
    """What is searched and how: the tables `[merge]` and `[search]`, checked.

    Attributes:
      config: the settings that are flags.
      merge: the flags of the merge.
      settings: of its method, but for those that are searched.
      tables: its rules; what they are for is not searched.
      objective: what is minimized.
      tasks: how each task is asked, by name.
      search: what is searched on.
      report: what is reported on.
      modules: patterns of keys, by module.
    """

    config: SearchConfig
    merge: MergeConfig
    settings: Mapping[str, Any]
    tables: Sequence[Mapping[str, Any]]
    objective: Objective
    tasks: Mapping[str, TaskConfig]
    search: Split
    report: Split
    modules: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        """Refuses a merge that cannot be searched, and rules that cannot be."""
        method = self.merge.method
        if method not in METHODS:
            near = settings.suggestion(method, METHODS)
            raise ValueError(
                f"[merge].method must be one that can be searched, of"
                f" {', '.join(METHODS)}, got {method!r}{near}"
            )
        for name in self.settings:
            if name in self.ranges:
                raise ValueError(
                    f"[merge].settings must leave {name} to the search; set its range"
                    f" by [search].{name}_range"
                )
        if self.merge.embeddings == "common":
            raise ValueError(
                '[merge].embeddings must be "error" or "base" in a search, got'
                ' "common"; search with "base", and merge the recipe that it writes'
                ' with "common"'
            )
        self.plain(self.tables)  # so that slips show before a file is read

    @property
    def ranges(self) -> dict[str, Range]:
        """The settings that are searched, with their ranges; lambda last."""
        known = methods.METHODS[self.merge.method].parameters
        names = [name for name in ("weight", "density", "lambda") if name in known]
        return {name: self.config.range_of(name) for name in names}

    @property
    def starts(self) -> dict[str, float]:
        """Where the search begins: a mean of the models, and the method's defaults."""
        known = methods.METHODS[self.merge.method].parameters
        told = {name: known[name].default for name in self.ranges if name != "weight"}
        found = {name: float(value or 0.0) for name, value in told.items()}
        return {"weight": 1 / len(self.merge.names), **found}

    @functools.cached_property
    def normalized(self) -> bool:
        """Whether the method divides sums by the weights."""
        given = {**self.settings, "weight": 1.0}
        settled = methods.settle(self.merge.method, given, len(self.merge.names))
        return bool(settled["normalize"])

    @property
    def stored(self) -> str | None:
        """What floats of a merge are stored in, as safetensors calls it, if told."""
        return match.DTYPES[self.merge.dtype] if self.merge.dtype else None

    @property
    def scale(self) -> str:
        """The setting that says how far a merge goes from the base."""
        return "lambda" if self.normalized else "weight"

    @property
    def evaluations(self) -> dict[str, int]:
        """How many trials each arm has, CMA-ES last."""
        arms = [name for name in BASELINES if name in self.config.baselines]
        return {
            name: 1 if name == UNIFORM else self.config.budget
            for name in (*arms, EVOLUTION)
        }

    def plain(self, tables: Sequence[Mapping[str, Any]]) -> Merging:
        """Returns the merge at the start of the search, with other rules."""
        own = {**self.settings, **self.starts}
        return Merging(config=self.merge, settings=own, tables=tables)

    def take(self, name: str) -> Merging:
        """Returns the merge that is one of the models, or the base, as it is."""
        return self.plain([{"pattern": rules.ALL, "take": name}])

    def merging(self, genome: Genome, x: Genes) -> Merging:
        """Returns the merge that genes make: one rule for each pattern of a cell.

        They stand behind the given rules, which so have nothing of the genes.
        """
        found = genome.settings(x)
        tables = [
            {
                "pattern": pattern,
                "settings": found[genomes.ALL] | found[cell.name],
                **({"layers": list(cell.layers)} if cell.layers else {}),
            }
            for cell in genome.cells
            for pattern in cell.patterns
        ]
        return self.plain([*self.tables, *tables])

    @property
    def shaping(self) -> dict[str, Any]:
        """The settings that every trial depends on, as JSON values."""
        return {
            **settings.shaping(self.config),
            "merge": self.plain(self.tables).shaping,
            "domains": dict(self.objective.domains),
            "tasks": dict(self.objective.tasks),
            **({"asked": asked} if (asked := asking.shaping(self.tasks)) else {}),
            "modules": {name: list(many) for name, many in self.modules.items()},
        }


def read_recipe(path: str, flags: Mapping[str, Any]) -> Searching:
    """Reads the tables `[merge]` and `[search]` of a recipe.

    Args:
      path: the TOML file.
      flags: take the place of keys of `[search]`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not TOML, is a recipe of a run, lacks one of the tables, or
        a key is wrong; names it.
    """
    says = {"merge": "what is merged", "search": "what of that is searched"}
    given = merging.read_tables(path, says)
    folder = given.get("output")
    places = {"output": files.join(folder, "merged")} if folder else {}
    try:
        parts = merging.part_table({**places, **given["merge"]}, "[merge]")
        places = {"output": files.join(folder, "search")} if folder else {}
        return _read({**places, **given["search"]}, flags, *parts)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read(
    table: Mapping[str, Any],
    flags: Mapping[str, Any],
    merge: MergeConfig,
    own: Mapping[str, Any],
    tables: Sequence[Any],
) -> Searching:
    plain = {key: value for key, value in table.items() if key not in _TABLES}
    config = settings.from_mapping(SearchConfig, {**plain, **flags}, "[search]")
    for name in _TABLES:
        if not isinstance(table.get(name, {}), Mapping):
            raise ValueError(f"[search].{name} must be a table, got {table[name]!r}")
    tasks = asking.read(table.get("tasks", {}))
    _check_splits(config, tasks, table)
    asking.check_templates(config, tasks)
    return Searching(
        config=config,
        merge=merge,
        settings=own,
        tables=tables,
        objective=Objective(
            domains=_numbers(table.get("domains", {}), "[search.domains]"),
            tasks={name: task.weight for name, task in tasks.items()},
        ),
        tasks=tasks,
        search=Split(
            windows=config.windows,
            tasks={name: task.search for name, task in tasks.items()},
            run_code=config.run_code,
        ),
        report=Split(
            windows=config.report,
            tasks={name: task.report for name, task in tasks.items()},
            run_code=config.run_code,
        ),
        modules=_modules(table.get("modules", MODULES)),
    )


def _check_splits(
    config: SearchConfig, tasks: Mapping[str, Any], table: Mapping[str, Any]
) -> None:
    """Refuses a search that measures nothing, or reports on nothing."""
    if config.windows is None and not tasks:
        raise ValueError(
            "[search] must hold 'windows' to measure bits per byte on, or tasks as"
            " [search.tasks.NAME], or both"
        )
    if (config.windows is None) != (config.report is None):
        raise ValueError(
            "[search] must hold both 'windows' and 'report', another split of the same"
            f" prepare, or neither, got {config.windows!r} and {config.report!r}"
        )
    if config.windows is None and table.get("domains"):
        raise ValueError("[search.domains] must go with windows, there are none")


def _numbers(table: Mapping[str, Any], where: str) -> dict[str, float]:
    for name, value in table.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{where}.{name} must be a number, got {value!r}")
    return {name: float(value) for name, value in table.items()}


def _modules(table: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Reads `[search.modules]`: patterns for keys, by the module's name."""
    found = {}
    for name, many in table.items():
        listed = isinstance(many, list | tuple) and many
        if not listed or not all(isinstance(one, str) and one for one in many):
            raise ValueError(
                f"[search.modules].{name} must be a list of patterns for keys, as"
                f' ["*.mlp.*"], got {many!r}'
            )
        if name == genomes.REST:
            raise ValueError(
                f"[search.modules] must leave the name {name!r} to the tensors that no"
                " module's pattern fits"
            )
        found[name] = tuple(many)
    return found
