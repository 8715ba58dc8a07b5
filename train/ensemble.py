"""Several models as one: the mean of their next-token probabilities.

    p(v) = sum over m of w_m p_m(v),  w_m >= 0, their sum 1
    log p(v) = logsumexp over m of (log w_m + log p_m(v))

The models must have one tokenizer, or v would be another token in each; the first one's
reads the text for all. In Table 7 of
FuseLLM (Wan et al. 2024, arXiv 2401.10491) it is what fusion is compared with; it costs
the memory and the time of all of them.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from schemas import files
from train.merge import vocabulary
from transforms import causal, scorer, tokenizer
from transforms.causal import Halves
from transforms.scorer import Scorer, ScorerSettings

if TYPE_CHECKING:
    from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput


def shares(weights: Sequence[float], models: int) -> tuple[float, ...]:
    """Returns what each model weighs, in all 1.

    Args:
      weights: at least 0, in any unit; empty: all alike.
      models: how many there are.

    Raises:
      ValueError: if there are not as many, one is below 0 or not finite, or all are 0.
    """
    given = tuple(weights) or (1.0,) * models
    if len(given) != models:
        raise ValueError(
            f"an ensemble must have a weight for each of its {models} models, got"
            f" {len(given)}"
        )
    total = math.fsum(given)
    if min(given) < 0 or not (math.isfinite(total) and total > 0):
        raise ValueError(
            "weights of an ensemble must be finite, at least 0, and not all 0, got"
            f" {', '.join(f'{one:g}' for one in given)}"
        )
    return tuple(one / total for one in given)


def fingerprint(models: Sequence[str], weights: Sequence[float]) -> str:
    """Digests the models, in their order, and what they weigh."""
    prints = [scorer.model_fingerprint(model) for model in models]
    return files.digest([prints, shares(weights, len(models))])


def load(
    settings: ScorerSettings, others: Sequence[str], weights: Sequence[float]
) -> Scorer:
    """Loads models as one that is ready to score.

    Args:
      settings: of the first model; the others are loaded alike.
      others: the models beside it.
      weights: of all of them, as `shares` takes them.

    Raises:
      FileNotFoundError: if a path does not exist.
      ValueError: if their vocabularies differ, or one cannot be loaded.
    """
    names = (settings.model, *others)
    mixed = shares(weights, len(names))
    refuse_others(settings.tokenizer or settings.model, others)
    device = causal.choose_device(settings.device)
    first = scorer.load_model(settings)
    more = [
        causal.load_model(name, dtype=first.dtype, device=device) for name in others
    ]
    return Scorer(
        Ensemble([first, *more], mixed),
        tokenizer.load(settings.tokenizer or settings.model),
        top_k=settings.top_k,
        tail_samples=settings.tail_samples,
        batch_tokens=settings.batch_tokens,
    )


def refuse_others(first: str, others: Sequence[str]) -> None:
    """Refuses models whose tokens, or borders of texts, are not those of the first.

    Args:
      first: a model, or whose tokenizer reads the text for all.
      others: the models beside it.

    Raises:
      FileNotFoundError: if a path does not exist.
      ValueError: if there are such; says how the first of them differs.
    """
    own = tokenizer.load(first)
    for model in others:
        theirs = tokenizer.load(model)
        differ = vocabulary.difference(first, own, model, theirs)
        for role in ("start", "eos"):
            one, other = (getattr(told, f"{role}_id") for told in (own, theirs))
            if differ is None and one != other:
                differ = f"{first} has {role} token {one} and {model} {other}"
        if differ is not None:
            raise ValueError(
                f"models of an ensemble must have one vocabulary, but {differ}; take it"
                " out, or fuse: that is what maps one vocabulary to another"
            )


class Ensemble(nn.Module):
    """Models of one vocabulary, which give one distribution.

    Like a model of transformers it has a body and a head, which `causal.Halves` parts:
    the features of all members side by side, and the mixture of what their heads make
    of them. So logits exist for some positions at a time, of one member at a time.

    Attributes:
      base_model: the bodies.
      config: has the longest input that all members can read.
    """

    def __init__(self, members: Sequence[Any], shares: Sequence[float]) -> None:
        """Takes loaded models and what they weigh, in all 1.

        Raises:
          ValueError: if they have not the same number of logits, or one looks ahead.
        """
        from transformers import PretrainedConfig  # takes seconds

        super().__init__()
        self.members = nn.ModuleList(members)
        halves = [causal.Halves(member) for member in members]
        widths = [half.width for half in halves]
        if len(set(widths)) > 1:
            raise ValueError(
                "models of an ensemble must have the same number of logits, padding"
                f" included, got {', '.join(map(str, widths))}"
            )
        self.base_model = _Bodies(halves)
        self._logs = [math.log(share) if share else -math.inf for share in shares]
        limits = filter(None, map(causal.longest_input, members))
        self.config = PretrainedConfig(
            max_position_embeddings=min(limits, default=None)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the first member's weights."""
        return next(self.parameters()).dtype

    def forward(
        self, input_ids: Int64[Tensor, "b t"], use_cache: bool = False
    ) -> "CausalLMOutput":
        """Returns log p, which are logits that are normalized: (b, t, v)."""
        from transformers.modeling_outputs import CausalLMOutput

        features = self.base_model(input_ids, use_cache).last_hidden_state  # (b, t, f)
        b, t, _ = features.shape
        return CausalLMOutput(logits=self._mix(features.flatten(0, 1)).view(b, t, -1))

    def _mix(self, features: Float[Tensor, "p f"]) -> Float[Tensor, "p v"]:
        """Mixes what the heads say, in float32: two distributions exist at once."""
        mixed: Tensor | None = None
        pieces = self.base_model.part(features)
        for half, piece, log in zip(
            self.base_model.halves, pieces, self._logs, strict=True
        ):
            logprobs = half.logits(piece).float().log_softmax(-1) + log  # (p, v)
            mixed = logprobs if mixed is None else torch.logaddexp(mixed, logprobs)
        assert mixed is not None, "an ensemble has members"
        return mixed


class _Bodies(nn.Module):
    """The bodies of several models, whose features stand side by side."""

    def __init__(self, halves: Sequence[Halves]) -> None:
        super().__init__()
        self.halves = halves
        self._widths: list[int] = []

    def forward(
        self,
        input_ids: Int64[Tensor, "b t"],
        use_cache: bool = False,
        position_ids: Int64[Tensor, "b t"] | None = None,
    ) -> "BaseModelOutput":
        """Runs every body on the same tokens."""
        from transformers.modeling_outputs import BaseModelOutput

        found = [half.features(input_ids, position_ids) for half in self.halves]
        self._widths = [one.shape[-1] for one in found]
        return BaseModelOutput(last_hidden_state=torch.cat(found, -1))

    def part(self, features: Float[Tensor, "p f"]) -> tuple[Tensor, ...]:
        """Gives each model its own features back."""
        return torch.split(features, self._widths, -1)
