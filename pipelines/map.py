"""fusebeam map: choose one target token for each source token, and report on it.

The strategies of FuseLLM and FuseChat trade token for token. A token of the same bytes
is taken where the target has one, control tokens go by role; for the others `first`
takes the first token that the target would write, `mined` the nearest by edit distance,
`statistics` the one that stood beside it most often in a scored corpus.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from pipelines import counting, guards, inspect, launch, scored
from pipelines.counting import CountConfig
from pipelines.inspect import Page
from schemas import files, manifest, scores
from schemas.errors import SchemaError
from schemas.settings import setting
from transforms import checkpoint, tokenizer
from transforms.attempts import Guards
from transforms.functional import counterparts, token_map
from transforms.functional.token_map import TokenMap
from transforms.tokenizer import Tokenizer

_SHOWN_CHARS = 32
_STEPS = (1, 2, 3, 4, 5, 9, 17, 33)
"""Least distance of each line of the report's histogram."""

_ROWS = {
    token_map.BYTES: "same bytes",
    token_map.ROLE: "by role",
    token_map.FIRST: "first token",
    token_map.EDIT: "edit distance",
    token_map.STATISTICS: "statistics",
    token_map.NONE: "none",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MapConfig:
    """Settings of `fusebeam map`."""

    source: str = setting(
        help="the source: a model's folder, .gguf file or hub id, or its scores folder"
        " (which statistics needs)"
    )
    target: str = setting(help="the target, in the same way")
    output: str = setting(help="file to write, NAME.parquet", shapes_output=False)
    strategy: Literal["first", "mined", "statistics"] = setting(
        "first",
        help="what stands for a token whose bytes are no token of the target's: the"
        " first that it would write, the nearest by edit distance, or the most frequent"
        " neighbor",
    )
    counts: str | None = setting(
        None,
        help="folder for what statistics count, which other maps may share; left out:"
        " NAME.counts beside the output",
        shapes_output=False,
    )
    report: bool = setting(True, help="print how tokens were mapped")
    examples: int = setting(10, help="worst examples in the report")
    stall_timeout: float = guards.stall_timeout()
    overwrite: bool = setting(
        False, help="write anew what other settings have written", shapes_output=False
    )

    def __post_init__(self) -> None:
        """Checks what can be checked without reading a file."""
        if not self.output.endswith(".parquet"):
            raise ValueError(f"output must be a .parquet file, got {self.output!r}")
        if self.examples < 0:
            raise ValueError(f"examples must be 0 or more, got {self.examples}")
        Guards(stall_timeout=self.stall_timeout)

    @property
    def counting(self) -> CountConfig:
        """What statistics count."""
        folder = f"{self.output.removesuffix('.parquet')}.counts"
        return CountConfig(
            source=self.source,
            target=self.target,
            output=self.counts or folder,
            overwrite=self.overwrite,
            guards=Guards(stall_timeout=self.stall_timeout),
        )


def map_tokens(
    config: MapConfig, runner_flags: Sequence[str] = ()
) -> tuple[TokenMap, Tokenizer, Tokenizer]:
    """Makes a map, unless it is there, and writes it.

    Returns:
      The map, the source's tokenizer and the target's.

    Raises:
      SchemaError: if another map is in the way and `config.overwrite` is off, or if
        statistics are asked for of what is not scored.
    """
    source, target = (_tokenizer(place) for place in (config.source, config.target))
    counted = None
    if config.strategy == "statistics":
        for place in (config.source, config.target):
            if not _is_scored(place):
                raise SchemaError(
                    "strategy = statistics counts over a scored corpus: source and"
                    f" target must be scores folders, got {place}, which is none; score"
                    " the same windows with both models and name their folders"
                )
        counted = counting.fingerprint_of(config.counting)
    if files.exists(config.output) and not config.overwrite:
        with files.open_input(config.output) as file:
            found = token_map.load_map(
                file,
                source_fingerprint=source.fingerprint,
                target_fingerprint=target.fingerprint,
                strategy=config.strategy,
                counts=counted,
            )
        return found, source, target
    made = _choose(config, source, target, runner_flags)
    with files.publish(config.output) as sink:
        token_map.save_map(made, sink, source=source, target=target)
    files.tidy(files.join(files.parent(config.output), files.TEMPORARY))
    return made, source, target


def _choose(
    config: MapConfig,
    source: Tokenizer,
    target: Tokenizer,
    runner_flags: Sequence[str],
) -> TokenMap:
    """Chooses the target tokens, by counts of the corpus where these are wanted."""
    width = _width(config.target)
    if config.strategy == "first":
        return counterparts.build_first(source, target, target_width=width)
    if config.strategy == "mined":
        return counterparts.build_mined(source, target, target_width=width)
    described = counting.count_windows(config.counting, runner_flags)
    return counterparts.build_statistics(
        source,
        target,
        counting.read_counts(config.counting.output),
        fingerprint=described.fingerprint,
        target_width=width,
    )


def _is_scored(place: str) -> bool:
    if not manifest.present(place):
        return False
    found = files.read_json(files.join(place, manifest.NAME))
    return bool(found.get("stage") == scores.STAGE)


def _tokenizer(place: str) -> Tokenizer:
    return scored.tokenizer_of(place) if _is_scored(place) else tokenizer.load(place)


def _width(place: str) -> int | None:
    """Returns how many logits a model has, where its configuration tells."""
    if _is_scored(place):
        return None  # what was scored has logits
    found = checkpoint.fetch(place, [checkpoint.CONFIG])
    path = found.folder / checkpoint.CONFIG
    if found.gguf_file is not None or not path.is_file():
        return None
    config = files.read_json(str(path))
    width = (config.get("text_config") or config).get("vocab_size")
    return width if isinstance(width, int) else None


def report(
    made: TokenMap, source: Tokenizer, target: Tokenizer, page: Page, examples: int
) -> Iterator[str]:
    """Yields the lines that tell how tokens were mapped, and the worst of them.

    Args:
      made: the map.
      source: the source's tokenizer.
      target: the target's.
      page: how to color them.
      examples: how many of the most distant pairs to show.
    """
    size = made.source_size
    yield page.paint(
        f"{source.name} to {target.name}, {made.strategy}: {size:,} source ids",
        inspect.BOLD,
    )
    apart = made.distances[made.how > token_map.ROLE]
    for number, name in _ROWS.items():
        count = int((made.how == number).sum())
        if count:
            yield f"  {name:<16}{count:>9,} {count / size:>7.1%}"
    if not apart.size:
        return
    yield f"  characters apart (mean {apart.mean():.2f})"
    for low, high in itertools.zip_longest(_STEPS, _STEPS[1:]):
        count = int(((apart >= low) & (apart < (high or np.inf))).sum())
        if count:
            yield f"    {_range(low, high):<14}{count:>9,} {count / size:>7.1%}"
    order = np.argsort(-made.distances, kind="stable")
    worst = [int(s) for s in order[:examples] if made.distances[s] > 0]
    if worst:
        yield "  worst"
    for s in worst:
        pair = (shown(source, s), shown(target, int(made.target_ids[s])))
        text = f"{made.distances[s]:>6}  {pair[0]:<{_SHOWN_CHARS}}  {pair[1]}"
        yield page.paint(text, inspect.RED)


def _range(low: int, high: int | None) -> str:
    if high is None:
        return f"{low} or more"
    return str(low) if high == low + 1 else f"{low} to {high - 1}"


def shown(own: Tokenizer, token_id: int) -> str:
    """Writes a token as `inspect` does, the middle of a long one left out."""
    text = inspect.shown(own, token_id)
    if len(text) <= _SHOWN_CHARS:
        return text
    half = (_SHOWN_CHARS - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    config, runner_flags = launch.parse(
        MapConfig,
        sys.argv[1:] if argv is None else argv,
        prog="fusebeam map",
        description=__doc__ or "",
    )
    made, source, target = map_tokens(config, runner_flags)
    if config.report:
        page = Page(color=sys.stdout.isatty())
        for line in report(made, source, target, page, config.examples):
            print(line)
    print(f"{config.output}: {int((made.target_ids >= 0).sum()):,} tokens mapped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
