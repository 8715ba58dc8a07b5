"""Makes what the authors look up of a source and a target, for `reference`."""

from transforms.functional import reference_maps
from transforms.functional.cooccurrence import Counts
from transforms.functional.reference_maps import Marks
from transforms.functional.reference_rows import Lexicon
from transforms.strategies import Strategy
from transforms.tokenizer import Tokenizer


def build_lexicon(
    own: Tokenizer, target: Tokenizer, strategy: Strategy, counts: Counts | None = None
) -> Lexicon:
    """Makes the lexicon of a source and the target.

    Args:
      own: the source's tokenizer.
      target: the target's.
      strategy: exact, mined or statistics.
      counts: for statistics, as the authors count; None while these are counted, and of
        a tokenizer and itself.
    """
    marks = Marks(
        source=own.space_mark(),
        target=target.space_mark(),
        lends_prefix=own.space_mark() == "Ġ",  # GPT-2's and its heirs'
    )
    source_tokens, target_tokens = own.vocabulary(), target.vocabulary()
    build = reference_maps.exact_ids
    if strategy == "mined":
        build = reference_maps.mined_ids
    mapped = build(source_tokens, target_tokens, marks)
    if counts is not None:
        found = reference_maps.statistical_ids(
            source_tokens,
            target_tokens,
            marks,
            source_ids=counts.source_ids,
            target_ids=counts.target_ids,
            counts=counts.counts,
            unseen=_unseen(target),
            roles=_roles(own, target),
        )
        mapped = reference_maps.fill_ids(mapped, found)
    return Lexicon(
        marks=marks,
        source_tokens=source_tokens,
        target_tokens=target_tokens,
        source_decoded=own.decode_each(),
        target_decoded=target.decode_each(),
        mapped=mapped,
    )


def _unseen(target: Tokenizer) -> int:
    """What the authors map a token to that they never saw: unk, else EOS."""
    for token_id in (target.unk_id, target.eos_id):
        if token_id is not None:
            return token_id
    raise ValueError(
        f"{target.name} must have an unknown token or an EOS for --reference with"
        " statistics; it has neither"
    )


def _roles(own: Tokenizer, target: Tokenizer) -> dict[int, int]:
    pairs = ((own.bos_id, target.bos_id), (own.eos_id, target.eos_id))
    return {s: t for s, t in pairs if s is not None and t is not None}
