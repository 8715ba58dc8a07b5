"""Writes what a strategy takes to know of vocabularies into a fused folder.

`transforms.strategies` reads it on the workers: for every source its map to sequences
of the target's tokens; for the warped strategies one target token for each of its own,
by statistics of what stands beside what in the corpus where that is asked for; under
`reference` what the authors look up.
"""

from collections.abc import Sequence

from pipelines import counting, lexicons
from pipelines.counting import CountConfig
from schemas import files
from transforms import strategies
from transforms.functional import counterparts, token_map, vocabulary
from transforms.functional.token_map import TokenMap
from transforms.strategies import Strategy
from transforms.tokenizer import Tokenizer


def write_maps(
    folder: str,
    name: str,
    own: Tokenizer,
    target: Tokenizer,
    strategy: Strategy,
    *,
    reference: bool,
) -> None:
    """Writes a source's maps that take nothing but the two tokenizers."""
    with files.publish(strategies.vocabulary_file(folder, name)) as sink:
        vocabulary.save_map(vocabulary.build_map(own, target), sink)
    if strategy in ("spans", "statistics"):
        return
    if reference:
        lexicons.write_lexicon(folder, name, own, target, strategy)
        return
    build = {"exact": counterparts.build_first, "mined": counterparts.build_mined}
    _save_tokens(folder, name, build[strategy](own, target), own, target)


def write_statistics(
    folder: str,
    name: str,
    own: Tokenizer,
    target: Tokenizer,
    config: CountConfig,
) -> str:
    """Writes a source's token map by statistics, or its lexicon under `reference`.

    Args:
      folder: of the maps.
      name: of the source.
      own: its tokenizer.
      target: the target's.
      config: of finished counts.

    Returns:
      Fingerprint of the counts.
    """
    counts, found = counting.read_counts(config.output), counting.fingerprint_of(config)
    if config.reference:
        lexicons.write_lexicon(folder, name, own, target, "statistics", counts)
    else:
        made = counterparts.build_statistics(own, target, counts, fingerprint=found)
        _save_tokens(folder, name, made, own, target)
    return found


def count(
    config: CountConfig, runner_flags: Sequence[str], *, slices: str | None
) -> None:
    """Counts how often tokens stand beside each other, unless that was done.

    Args:
      config: what is counted.
      runner_flags: Beam's.
      slices: those that this process fuses, one of several; then the counts must be
        there, as each of the processes would count the whole corpus.

    Raises:
      ValueError: if the counts must be there, and are not.
    """
    if slices is not None and not counting.is_whole(config):
        raise ValueError(
            f"co-occurrences must be in {config.output} before --slices are fused by"
            " statistics; count them once, by fusebeam fuse without --slices or by"
            f" fusebeam map --strategy=statistics --counts={config.output}"
        )
    counting.count_windows(config, runner_flags)


def _save_tokens(
    folder: str, name: str, made: TokenMap, own: Tokenizer, target: Tokenizer
) -> None:
    with files.publish(strategies.tokens_file(folder, name)) as sink:
        token_map.save_map(made, sink, source=own, target=target)
