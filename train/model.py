"""The target model: loaded safely, probed once, and given the training objective.

Architectures differ in two ways that matter here. Most apply a plain output head to the
last hidden states, and then the loss never needs all logits at once; some cap or scale
their logits. Most keep the segments of a packed row apart when positions restart; some
do not. Nothing is looked up by name: the model itself is asked, on a dozen tokens.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from train import heads, loss
from train.loss import Losses, Objective, Rows
from transforms import checkpoint

WEIGHTS = "*.safetensors"
_HUB_FILES = ("*.json", WEIGHTS, "*.model", "*.txt", "*.tiktoken", "*.jinja")
_PROBE_SEGMENTS = (3, 5, 4)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a model must be given.

    Attributes:
      plain_head: its logits are its output head applied to its last hidden states.
      keeps_segments: positions that restart keep packed segments apart.
    """

    plain_head: bool
    keeps_segments: bool


def folder_of(model: str) -> pathlib.Path:
    """Returns the local folder of a model, fetched if `model` is a hub id.

    Raises:
      FileNotFoundError: if it has no safetensors weights.
    """
    folder = checkpoint.fetch(model, _HUB_FILES).folder
    if not any(folder.glob(WEIGHTS)):
        raise FileNotFoundError(
            f"{model} must hold weights as {WEIGHTS}, it holds none; load it with"
            " transformers and save it with save_pretrained"
        )
    return folder


def stored_dtype(folder: pathlib.Path) -> torch.dtype:
    """Returns the type that a folder's configuration says its weights are of."""
    return getattr(_config(folder), "dtype", None) or torch.float32


def uses_cache(folder: pathlib.Path) -> bool | None:
    """Returns whether a folder's configuration lets the model cache what it has read.

    The Trainer turns that off, in the model and so in its checkpoints.
    """
    return getattr(_config(folder), "use_cache", None)


def _config(folder: pathlib.Path) -> Any:
    return transformers.AutoConfig.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )


def load(folder: pathlib.Path) -> Any:
    """Loads a causal language model in float32, whatever it is stored in.

    The optimizer needs float32 weights: a bfloat16 weight of 1 does not move by less
    than 1/128. Running in bfloat16 is autocast's work.
    """
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
    )


def probe(model: Any) -> Traits:
    """Asks a model, in evaluation mode and float32, for its traits."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    make = torch.Generator().manual_seed(0)
    size = int(model.get_input_embeddings().weight.shape[0])
    length = sum(_PROBE_SEGMENTS)
    ids = torch.randint(size, (1, length), generator=make).to(device)
    with torch.no_grad():
        traits = Traits(
            plain_head=_has_plain_head(model, ids),
            keeps_segments=_keeps_segments(model, ids),
        )
    model.train(was_training)
    return traits


def _has_plain_head(model: Any, ids: Tensor) -> bool:
    """Puts known values in place of the head's output: do they come out unchanged?"""
    head, base = model.get_output_embeddings(), model.base_model
    if not isinstance(head, nn.Linear) or base is model:
        return False
    made = torch.linspace(-1e3, 1e3, ids.numel() * len(head.weight))
    made = made.reshape(*ids.shape, -1).to(head.weight)
    seen: list[Tensor] = []

    def replace(_: nn.Module, inputs: tuple[Tensor], __: Tensor) -> Tensor:
        seen.append(inputs[0])
        return made

    hook = head.register_forward_hook(replace)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    same = len(seen) == 1 and torch.allclose(seen[0], _hidden(model, ids, None))
    return same and torch.equal(logits, made)


def _keeps_segments(model: Any, ids: Tensor) -> bool:
    """Compares segments packed and alone with what they differ by if not kept apart."""
    places = torch.cat([torch.arange(n) for n in _PROBE_SEGMENTS])[None].to(ids.device)
    try:
        packed = model(input_ids=ids, position_ids=places, use_cache=False).logits
    except TypeError:  # it takes no positions
        return False
    mixed = model(input_ids=ids, use_cache=False).logits
    parts = torch.split(ids, list(_PROBE_SEGMENTS), 1)
    alone = [model(input_ids=part, use_cache=False).logits for part in parts]
    off = (packed - torch.cat(alone, 1)).abs().max()
    return bool(off <= 0.01 * (mixed - torch.cat(alone, 1)).abs().max())


def _hidden(model: Any, input_ids: Tensor, position_ids: Tensor | None) -> Tensor:
    places = {} if position_ids is None else {"position_ids": position_ids}
    # A cache, even an empty one, would switch the masks of packed rows off.
    output = model.base_model(input_ids=input_ids, use_cache=False, **places)
    hidden: Tensor = output[0]  # (b, t, d)
    return hidden


def give_objective(model: Any, traits: Traits, objective: Objective) -> None:
    """Makes `model(**batch)` return the objective's losses instead of logits.

    The forward pass itself is replaced, on this instance, as wrappers (data parallel,
    sharded, autocast) gather weights and gradients around it.
    """
    target = model.get_base_model() if hasattr(model, "get_base_model") else model

    def forward(
        input_ids: Tensor,
        loss_mask: Tensor,
        top_ids: Tensor,
        probs: Tensor,
        tail: Tensor,
        clm_weight: float,
        clm_count: Tensor,
        fusion_count: Tensor,
        position_ids: Tensor | None = None,
        **_: Any,  # what a wrapper adds: attention_mask, labels, ... all None
    ) -> dict[str, Tensor]:
        rows = loss.select_rows(input_ids, loss_mask, top_ids, probs, tail)
        now = dataclasses.replace(objective, clm_weight=clm_weight)
        counts = {"clm_count": clm_count, "fusion_count": fusion_count}
        found = _losses(target, traits, input_ids, position_ids, rows, now, counts)
        return {
            "loss": found.loss,
            "clm_sum": found.clm_sum,
            "fusion_sum": found.fusion_sum,
        }

    target.forward = forward


def _losses(
    model: Any,
    traits: Traits,
    input_ids: Tensor,
    position_ids: Tensor | None,
    rows: Rows,
    objective: Objective,
    counts: dict[str, Tensor],
) -> Losses:
    if traits.plain_head:
        hidden = _hidden(model, input_ids, position_ids).flatten(0, 1)
        head = model.get_output_embeddings()
        states = hidden.index_select(0, rows.places)  # (n, d)
        return heads.inside(
            head,
            states,
            lambda x: loss.head_loss(
                x, head.weight, head.bias, rows, objective, **counts
            ),
        )
    places = {} if position_ids is None else {"position_ids": position_ids}
    output = type(model).forward(model, input_ids=input_ids, use_cache=False, **places)
    logits = output.logits.flatten(0, 1).index_select(0, rows.places)  # (n, v)
    return loss.logits_loss(logits, rows, objective, **counts)


def companions(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the files of a model folder that training does not change."""
    for pattern in checkpoint.COMPANIONS:
        yield from sorted(p for p in folder.glob(pattern) if p.is_file())
