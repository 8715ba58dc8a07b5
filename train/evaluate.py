"""Bits per byte of models on windows that none of them was trained on; benchmarks.

    python -m train.evaluate --name=fused --model=runs/demo/models/fused \
        --windows=runs/demo/windows/heldout --output=runs/demo/evaluation

    bits per byte = nats of all tokens that hold counted bytes / ln 2 / counted bytes

Tokens differ between tokenizers, bytes do not: so sources, the target before and after,
and merged models stand in one table. Sums are over bytes, so a long document weighs
more than a short one.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from schemas import files, manifest, plan, settings, windows
from schemas.errors import SchemaError
from schemas.scores import Score
from schemas.settings import setting
from schemas.windows import Window
from train import ensemble
from transforms import scorer, tokenizer
from transforms.scorer import Scorer, ScorerSettings

VERSION = 1
ALL = "all"
"""What the sum over all domains is called; no domain may be called so."""

Domains = dict[str, dict[str, Any]]
"""By domain: nats (float), bytes, windows and failed windows (int)."""

Each = Callable[[Iterable[list[Window]]], Iterator[list[Window]]]
"""Reads on in groups of windows, as `iter` does."""

_NAME = re.compile(r"(?!evaluation$)[A-Za-z0-9_.-]+")
_TASK = re.compile(r"(?!\.+$)[^/\\]+")
"""Tasks name folders; the harness has some with brackets."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of the evaluation of one model."""

    name: str = setting(help="name of the result's file", shapes_output=False)
    model: str = setting(
        help="model: folder, .gguf file, or id on the Hugging Face hub",
        shapes_output=False,
    )
    output: str = setting(help="folder of results, NAME.json each", shapes_output=False)
    windows: str | None = setting(
        None, help="windows folder to measure bits per byte on", shapes_output=False
    )
    ensemble: tuple[str, ...] = setting(
        (),
        help="further models, of the same tokens, whose next-token probabilities are"
        " averaged with the model's",
        shapes_output=False,
    )
    ensemble_weights: tuple[float, ...] = setting(
        (),
        help="of the model and of each of --ensemble (default: all alike)",
        shapes_output=False,
    )
    tokenizer: str | None = setting(
        None, help="whose tokenizer to use (default: the model's)", shapes_output=False
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", help="of the weights"
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
    overwrite: bool = setting(
        False, help="replace a result of other settings", shapes_output=False
    )

    # Benchmarks: see train/benchmarks.py, where these have their part in the result.
    tasks: tuple[str, ...] = setting(
        (),
        help="benchmarks: bbh, arc, boolq, hellaswag, openbookqa, gsm8k, or tasks of"
        " lm-evaluation-harness or of --task_folders by name",
        shapes_output=False,
    )
    task_folders: tuple[str, ...] = setting(
        (),
        help="folders of tasks of your own, as lm-evaluation-harness has them",
        shapes_output=False,
    )
    task_batch: int = setting(
        8, help="requests of a forward pass on a task", shapes_output=False
    )
    task_limit: int | None = setting(
        None,
        help="items of each task that are asked, the first ones (default: all)",
        shapes_output=False,
    )
    chat_prompts: bool = setting(
        False,
        help="put what tasks ask into the model's chat template",
        shapes_output=False,
    )
    run_code: bool = setting(
        False,
        help="let tasks run code on this machine: what a model has written, Python of"
        " --task_folders, metrics that are programs of the hub",
        shapes_output=False,
    )

    def __post_init__(self) -> None:
        """Refuses values out of range."""
        if self.windows is None and not self.tasks:
            raise ValueError(
                "windows or tasks must be given, to measure bits per byte or benchmarks"
                " by, got neither; pass --windows=FOLDER, --tasks NAME ..., or both"
            )
        for name in ("batch_tokens", "task_batch", "task_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for task in self.tasks:
            if not _TASK.fullmatch(task):
                raise ValueError(
                    f"tasks must be names, without slashes, got {task!r}; folders of"
                    " tasks stand in task_folders"
                )
        if self.ensemble and self.tasks:
            raise ValueError(
                "tasks are asked of one model, which an ensemble is not; leave out"
                " --tasks or --ensemble"
            )
        if self.ensemble_weights or self.ensemble:
            ensemble.shares(self.ensemble_weights, 1 + len(self.ensemble))
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                "name must be of letters, digits, and _.-, and not that of the table,"
                f" evaluation, got {self.name!r}; choose another"
            )


def evaluate_model(
    config: EvaluateConfig, progress: Callable[[str], None] | None = None
) -> Domains:
    """Measures a model on windows, unless its result is there already.

    Args:
      config: what to measure; it names windows.
      progress: is given one line a slice of windows.

    Raises:
      SchemaError: if a result of other settings is there, or the windows are corrupt.
    """
    shaping, inputs = _identity(config)
    path = _path(config)
    found = kept(path, {**shaping, **inputs}, overwrite=config.overwrite)
    if found is not None:
        return found["domains"]
    domains = measure(_load(config), _windows(config), progress or _ignore)
    result = {
        "schema_version": VERSION,
        "settings": shaping,
        "inputs": inputs,
        "domains": domains,
    }
    files.write_json(path, result)
    return domains


def measured(config: EvaluateConfig) -> Domains | None:
    """Returns the result that is there, if it is what would be measured now."""
    if not files.exists(_path(config)):
        return None
    try:
        shaping, inputs = _identity(config)
    except FileNotFoundError:
        return None  # the model, or what it was measured on, is gone
    found = kept(_path(config), {**shaping, **inputs}, overwrite=True)
    return None if found is None else found["domains"]


def _windows(config: EvaluateConfig) -> str:
    assert config.windows is not None, "the caller asks for windows"
    return config.windows


def _path(config: EvaluateConfig) -> str:
    return files.join(config.output, f"{config.name}.json")


def _identity(config: EvaluateConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the settings that shape a result, and the fingerprints of its inputs."""
    inputs = {
        "windows": manifest.read(_windows(config), windows.STAGE).fingerprint,
        **fingerprints(config),
    }
    resolved = scorer.resolved(scorer_settings(config))
    return {**settings.shaping(config), **resolved}, inputs


def fingerprints(config: EvaluateConfig) -> dict[str, str]:
    """Returns what tells the model, or all of an ensemble, and its tokenizer."""
    if config.ensemble:
        names = (config.model, *config.ensemble)
        model = ensemble.fingerprint(names, config.ensemble_weights)
    else:
        model = scorer.model_fingerprint(config.model)
    return {
        "model": model,
        "tokenizer": tokenizer.load(config.tokenizer or config.model).fingerprint,
    }


def _load(config: EvaluateConfig) -> Scorer:
    asked = scorer_settings(config)
    if config.ensemble:
        return ensemble.load(asked, config.ensemble, config.ensemble_weights)
    return scorer.load(asked)


def _ignore(_: str) -> None:
    pass


def scorer_settings(config: EvaluateConfig) -> ScorerSettings:
    """Returns how the model is loaded and run."""
    return ScorerSettings(
        model=config.model,
        tokenizer=config.tokenizer,
        top_k=0,
        dtype=config.dtype,
        device=config.device,
        batch_tokens=config.batch_tokens,
        threads=config.threads,
        tune_allocator=not config.keep_malloc,
        share_device=config.share_device,
    )


def kept(
    path: str, identity: Mapping[str, Any], *, overwrite: bool
) -> dict[str, Any] | None:
    """Returns the result at `path` if it is what we would measure now.

    Args:
      path: of a result, which need not be there.
      identity: settings and inputs that shape it, flat.
      overwrite: whether one of others counts as none.

    Raises:
      SchemaError: if it is of others, or of an unknown version.
    """
    if not files.exists(path):
        return None
    found = dict(files.read_json(path))
    if found.get("schema_version") != VERSION:
        raise SchemaError(
            f"{path} must be of schema version {VERSION}, got"
            f" {found.get('schema_version')}; remove it"
        )
    had = {**found["settings"], **found["inputs"]}
    keys = sorted({*had, *identity})
    differing = [key for key in keys if had.get(key) != identity.get(key)]
    if not differing:
        return found
    if overwrite:
        return None
    key = differing[0]
    raise SchemaError(
        f"{path} was measured with {key} = {had.get(key)!r}, and now it is"
        f" {identity.get(key)!r}; choose another name, or pass --overwrite"
    )


def measure(
    scoring: Scorer,
    folder: str,
    progress: Callable[[str], None],
    share: tuple[int, int] = (0, 1),
    *,
    each: Each = iter,
) -> Domains:
    """Sums nats and bytes over the windows of a folder, by domain.

    Args:
      scoring: the model.
      folder: the windows.
      progress: is given one line a slice of windows.
      share: the number of this process, and of how many each takes every so manieth
        window.
      each: reads on in the groups of windows, whose reading may fail.

    Raises:
      SchemaError: if the windows are corrupt, or a domain is called `all`.
    """
    domains: Domains = {}
    for whole in each(_groups(folder, progress)):
        group = whole[share[0] :: share[1]]
        scored = scoring.score(group).scores if group else []
        for window, score in zip(group, scored, strict=True):
            _add(domains, window, score)
    return dict(sorted(domains.items()))


def _groups(folder: str, progress: Callable[[str], None]) -> Iterator[list[Window]]:
    """Yields the windows of a folder by row groups; tells when a slice is done."""
    slices = plan.read(folder)
    for number, piece in enumerate(slices, 1):
        yield from windows.read_slice(folder, piece)
        progress(f"slice {number}/{len(slices)}")


def _add(domains: Domains, window: Window, score: Score) -> None:
    name = window.domain or windows.DEFAULT_DOMAIN
    if name == ALL:
        raise SchemaError(
            f"no domain may be called {ALL!r}, the name of their sum, but window"
            f" {window.window_id} has it; prepare with another label"
        )
    empty = {"nats": 0.0, "bytes": 0, "windows": 0, "failed": 0}
    domain = domains.setdefault(name, empty)
    domain["windows"] += 1
    if score.error is not None:
        domain["failed"] += 1
        return
    domain["nats"] += score.nll_nats
    domain["bytes"] += score.n_bytes


def bits_per_byte(domains: Domains) -> dict[str, float]:
    """Returns bits per byte by domain, and over `all`, weighted by bytes.

    Raises:
      SchemaError: if windows failed: models would be compared on different text; or
        if there are no bytes to measure on.
    """
    failed = {name: d["failed"] for name, d in domains.items() if d["failed"]}
    if failed:
        raise SchemaError(
            f"every window must be scored, so that all models are measured on the same"
            f" text, but of these domains some failed: {failed}; prepare windows that"
            " fit this model's tokenizer and context"
        )
    nats = {name: d["nats"] for name, d in domains.items()}
    size = {name: d["bytes"] for name, d in domains.items()}
    nats[ALL], size[ALL] = math.fsum(nats.values()), sum(size.values())
    if empty := [name for name in size if not size[name]]:
        raise SchemaError(f"every domain must hold bytes that count, {empty} hold none")
    return {name: nats[name] / math.log(2) / size[name] for name in nats}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    config = settings.parse_flags(
        EvaluateConfig,
        sys.argv[1:] if argv is None else argv,
        prog="fusebeam evaluate",
        description="Measure a model: bits per byte on windows, and benchmarks.",
    )
    from train import benchmarks, summary  # which are built on this module

    if config.windows is not None:
        found = evaluate_model(config, _tell)
        print(summary.table(summary.summarize({config.name: found})))
    if config.tasks:
        benchmarks.evaluate_tasks(config, _tell)
        print(benchmarks.table(benchmarks.publish(config.output)))
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
