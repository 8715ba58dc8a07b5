"""fusebeam plan: say what a run will take, before anything of it is run.

A sample of the corpus is cut and counted with the models' own tokenizers; weights are
not loaded. From that, and from rates and prices, come the tokens, slices, bytes, hours
and money of every stage: for the corpus as it is, and for 10^6 to 10^12 tokens of its
kind. Every figure that these rest on is listed with its source: measured, listed, given
or assumed.
"""

import dataclasses
import re
import sys
from collections.abc import Sequence

from pipelines import basis, forecast, forecast_page, recipe
from pipelines.basis import Job, Rates
from pipelines.branches import ALL_SOURCES
from pipelines.forecast import Forecast
from pipelines.fuse import FuseConfig
from pipelines.prepare import PrepareConfig
from pipelines.score import ScoreConfig
from schemas import files, settings
from schemas.settings import setting
from train.config import TrainConfig
from transforms.functional.budget import Prices

SIZES = tuple(10.0**exponent for exponent in range(6, 13))
"""Tokens that are shown beside the corpus itself."""

_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_OF_A_RECIPE = (
    *("corpus", "models", "text_field", "max_tokens"),
    *("slice_bytes", "top_k", "epochs"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EstimateConfig:
    """Settings of `fusebeam plan`."""

    corpus: tuple[str, ...] = setting(
        (), help="corpus files, folders or globs, as prepare takes them"
    )
    models: tuple[str, ...] = setting(
        (),
        help="the target, then the sources: folders, .gguf files or hub ids; a source"
        " may be NAME=MODEL",
    )
    recipe: str | None = setting(
        None, help="TOML file that takes the place of --corpus, --models and the like"
    )
    tokens: tuple[float, ...] = setting(
        (),
        help="target tokens to fuse, e.g. 1e9; left out: the corpus, and 1e6 to 1e12",
    )
    text_field: str = setting(
        PrepareConfig.text_field, help="field of a record that holds its text"
    )
    max_tokens: int = setting(
        PrepareConfig.max_tokens, help="tokens of a window at most"
    )
    slice_bytes: int = setting(
        PrepareConfig.slice_bytes, help="bytes of text of a slice"
    )
    top_k: int = setting(
        ScoreConfig.top_k, help="entries kept for each position, of scores and fused"
    )
    epochs: float = setting(TrainConfig.epochs, help="passes of the training")
    tokens_per_second: tuple[str, ...] = setting(
        (),
        help="NAME=R where it is known how many of its tokens a second one device"
        " scores of a model; the target is called target",
    )
    train_tokens_per_second: float | None = setting(
        None, help="tokens a second that one device trains on"
    )
    flops: float = setting(
        4e14,
        help="FLOP/s that a device really reaches, for rates that are not given: 2 for"
        " each parameter and scored token, 6 in training",
    )
    price_gpu_hour: float | None = setting(
        None, help="of a device for an hour, its machine included, in your currency"
    )
    price_cpu_hour: float | None = setting(None, help="of one core for an hour")
    price_gb_month: float | None = setting(None, help="of 10^9 bytes for a month")
    sample_bytes: int = setting(4 << 20, help="bytes of the corpus to read")
    seed: int = setting(0, help="of the places that the sample is read at")
    json: str | None = setting(None, help="file that gets all figures as JSON")

    def __post_init__(self) -> None:
        """Checks what can be checked without reading a file."""
        for name in ("max_tokens", "slice_bytes", "top_k", "sample_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("flops", "epochs", "train_tokens_per_second"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0 and finite, got {value}")
        for name in ("price_gpu_hour", "price_cpu_hour", "price_gb_month"):
            price = getattr(self, name)
            if price is not None and not 0 <= price < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {price}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, got {self.seed}")
        for size in self.tokens:
            if not 1 <= size < float("inf"):
                raise ValueError(f"tokens must be 1 or more, got {size}")
        self.rates()
        self._check_job()

    def _check_job(self) -> None:
        """Checks that a recipe or flags say what is to be run, and not both."""
        if self.recipe is None:
            for name in ("corpus", "models"):
                if not getattr(self, name):
                    raise ValueError(f"{name} must be given, or a recipe")
            self.sources()
            return
        for name in _OF_A_RECIPE:
            if getattr(self, name) != getattr(EstimateConfig, name):
                raise ValueError(
                    f"{name} must be left out with recipe, which says it, got"
                    f" {getattr(self, name)!r}"
                )

    def rates(self) -> dict[str, float]:
        """Returns the given rates of scoring, in tokens a second, by name."""
        found: dict[str, float] = {}
        for entry in self.tokens_per_second:
            name, equals, text = entry.rpartition("=")
            try:
                rate = float(text)
            except ValueError:
                rate = float("nan")
            if not equals or name in found or not 0 < rate < float("inf"):
                raise ValueError(
                    "tokens_per_second must be NAME=R, each name once, R above 0, got"
                    f" {entry!r}"
                )
            found[name] = rate
        return found

    def sources(self) -> dict[str, str]:
        """Returns the sources of `models` by name: its own, or its place's last part.

        Raises:
          ValueError: if two have one name, or one is called target.
        """
        named: dict[str, str] = {}
        for entry in self.models[1:]:
            name, equals, place = entry.partition("=")
            if not (equals and _NAME.fullmatch(name)):
                place, name = entry, files.name_of(entry).removesuffix(".gguf")
            if name in named or name == "target":
                raise ValueError(
                    f"models must have a name each, and none but the first be target,"
                    f" got {name!r} of {entry}; name it by NAME=MODEL"
                )
            named[name] = place
        return named


def job_of(config: EstimateConfig) -> Job:
    """Returns the stages that a recipe or the flags describe.

    Raises:
      FileNotFoundError: if there is no such recipe.
      ValueError: if it is wrong, or the settings do not fit each other.
    """
    if config.recipe is not None:
        plan = recipe.read(config.recipe)
        rates = [(arm, rate) for arm in plan.arms for rate in arm.rates or (None,)]
        return Job(
            prepare=plan.prepare,
            split=plan.splits["fusion"],
            scores={name: plan.score(name) for name in ("target", *plan.sources)},
            fusions={name: plan.fuse_of(name) for name in plan.fusions},
            trainings=[plan.train(arm, rate) for arm, rate in rates],
            merges=len(plan.merges),
        )
    models = {"target": config.models[0], **config.sources()}
    return Job(
        prepare=PrepareConfig(
            inputs=config.corpus,
            output="",
            models=tuple(models.values()),
            text_field=config.text_field,
            max_tokens=config.max_tokens,
            slice_bytes=config.slice_bytes,
        ),
        split=None,
        scores={
            name: ScoreConfig(windows="", model=model, output="", top_k=config.top_k)
            for name, model in models.items()
        },
        fusions={
            ALL_SOURCES: FuseConfig(
                windows="",
                target="scores",
                sources=tuple(f"{name}=scores" for name in models if name != "target"),
                output="",
                top_k=config.top_k,
            )
        },
        trainings=[
            TrainConfig(
                data="", model=models["target"], output="", epochs=config.epochs
            )
        ],
    )


def forecast_of(config: EstimateConfig) -> Forecast:
    """Estimates what the run that the settings describe will take.

    Raises:
      FileNotFoundError: if corpus, recipe or a model is not there.
      FusionError: if the sample of the corpus says nothing.
      ValueError: if the settings do not fit each other, or the models.
    """
    job = job_of(config)
    rates = config.rates()
    for name in rates:
        if name not in job.scores:
            raise ValueError(
                f"tokens_per_second must name models, which are"
                f" {', '.join(job.scores)}, got"
                f" {name!r}{settings.suggestion(name, job.scores)}"
            )
    known = Rates(score=rates, train=config.train_tokens_per_second, flops=config.flops)
    prices = Prices(
        gpu_hour=config.price_gpu_hour,
        cpu_hour=config.price_cpu_hour,
        gb_month=config.price_gb_month,
    )
    of = basis.gather(job, known, sample_bytes=config.sample_bytes, seed=config.seed)
    return forecast.forecast(of, prices, config.tokens or (None, *SIZES))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    config = settings.parse_flags(
        EstimateConfig,
        sys.argv[1:] if argv is None else argv,
        prog="fusebeam plan",
        description=__doc__ or "",
    )
    found = forecast_of(config)
    print(forecast_page.page(found))
    if config.json is not None:
        files.write_json(config.json, found.as_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
