"""The target model: loaded safely, probed once, and given the training objective.

Architectures differ in two ways that matter here. Most apply an output head to the last
hidden states, and scale or cap what comes out or leave it, and then the loss never
needs all logits at once. Most keep the segments of a packed row apart when positions
restart; some do not. Nothing is looked up by name: the model itself is asked, on a
dozen tokens.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from train import heads, loss, metrics, rows
from train.loss import Losses
from train.objective import Objective
from train.rows import Rows
from transforms import checkpoint, loading

WEIGHTS = "*.safetensors"
_HUB_FILES = ("*.json", WEIGHTS, "*.model", "*.txt", "*.tiktoken", "*.jinja")
_COLUMNS = (
    *("loss_mask", "top_ids", "probs", "tail"),
    *("weights", "chunk_of", "chunk_logprobs"),
)
"""What of a batch, beside its tokens, `rows.select_rows` is given if it is there."""

_PROBE_SEGMENTS = (3, 5, 4)
_ROUNDING = 1e-5
"""What float32 leaves of a logit that was divided, capped and multiplied."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a model must be given.

    Attributes:
      plain_head: its logits are its output head applied to its last hidden states,
        then z = cap tanh(scale x / cap), or scale x.
      keeps_segments: positions that restart keep packed segments apart.
      scale: what the head's outputs are multiplied by.
      cap: bound of the logits' magnitude; None: they have none.
    """

    plain_head: bool
    keeps_segments: bool
    scale: float = 1.0
    cap: float | None = None


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

    Raises:
      SchemaError: if a weight is missing, or not of the shape that it should be.
    """
    loaded, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    loading.refuse_incomplete(str(folder), loaded, told)
    return loaded


def vocabulary(model: Any) -> int:
    """Counts the ids that a model both reads and predicts, padding among them."""
    target = _bare(model)
    sizes = [int(target.get_input_embeddings().weight.shape[0])]
    head = target.get_output_embeddings()
    if hasattr(head, "out_features"):
        sizes.append(int(head.out_features))
    return min(sizes)


def _bare(model: Any) -> Any:
    """Returns the target itself, where peft has wrapped it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def probe(model: Any) -> Traits:
    """Asks a model, in evaluation mode and float32, for its traits."""
    target = _bare(model)
    device = next(target.parameters()).device
    was_training = target.training
    target.eval()
    make = torch.Generator().manual_seed(0)
    length = sum(_PROBE_SEGMENTS)
    ids = torch.randint(vocabulary(target), (1, length), generator=make).to(device)
    with torch.no_grad():
        shape = _shape_of_head(target, ids)
        keeps = _keeps_segments(target, ids)
    target.train(was_training)
    if shape is None:
        return Traits(plain_head=False, keeps_segments=keeps)
    scale, cap = shape
    return Traits(plain_head=True, keeps_segments=keeps, scale=scale, cap=cap)


def probe_exactly(target: Any, source: pathlib.Path) -> Traits:
    """Probes a target in float32, whatever it is kept in under adapters.

    In fewer bits, segments apart and mixed may differ by less than is rounded. So the
    stored weights are loaded once more for it, on the CPU, as they are in the end, when
    adapters are merged into them.

    Args:
      target: the model that is trained, or a wrapper of peft around it.
      source: the folder that its weights came from.
    """
    bare = _bare(target)
    narrow = any(p.dtype != torch.float32 for p in bare.parameters())
    return probe(load(source) if narrow else bare)


def _shape_of_head(model: Any, ids: Tensor) -> tuple[float, float | None] | None:
    """Puts known values in place of the head's output: what becomes of them?

    Returns:
      Scale and cap of the logits; None if they are something else.
    """
    head, base = model.get_output_embeddings(), model.base_model
    if not isinstance(head, nn.Module) or base is model:
        return None
    seen: list[Tensor] = []
    made: list[Tensor] = []

    def replace(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        seen.append(inputs[0])
        made.append(_known_values(output))
        return made[-1].clone()

    hook = head.register_forward_hook(replace)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    if len(seen) != 1 or logits.shape != made[0].shape:
        return None
    same = torch.allclose(seen[0], _hidden(model, ids, None))
    return _recognize(made[0].double(), logits.double()) if same else None


def _known_values(like: Tensor) -> Tensor:
    """Makes numbers of both signs and magnitudes from 1e-4 to 1e6, in no order.

    In float32, whatever the model is in, so that what becomes of them is told exactly.
    """
    make = torch.Generator().manual_seed(1)
    sizes = torch.logspace(-4, 6, like.numel(), dtype=torch.float64)
    signs = torch.randint(2, (like.numel(),), generator=make) * 2 - 1
    mixed = (sizes * signs)[torch.randperm(like.numel(), generator=make)]
    return mixed.reshape(like.shape).to(like.device, torch.float32)


def _recognize(given: Tensor, logits: Tensor) -> tuple[float, float | None] | None:
    """Finds scale and cap in z = cap tanh(scale x / cap), or in z = scale x.

    The least magnitude tells the scale, as tanh(y) = y there, the greatest the cap, as
    tanh(y) = 1 there. All others must fit.
    """
    if torch.equal(given, logits):
        return 1.0, None
    sizes = given.abs().flatten()
    ratios, outer = (logits / given).flatten(), logits.abs().flatten()
    scale, cap = float(ratios[sizes.argmin()]), float(outer[sizes.argmax()])
    if not (scale > 0 and cap > 0):
        return None
    if abs(scale - 1) < _ROUNDING:
        scale = 1.0
    if torch.allclose(logits, scale * given, rtol=_ROUNDING, atol=0):
        return scale, None
    wanted = cap * torch.tanh(scale * given / cap)
    fits = torch.allclose(logits, wanted, rtol=_ROUNDING, atol=0)
    return (scale, cap) if fits else None


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


def give_objective(
    model: Any, traits: Traits, objective: Objective, *, kernels: bool = True
) -> None:
    """Makes `model(**batch)` return the objective's losses instead of logits.

    The forward pass itself is replaced, on this instance, as wrappers (data parallel,
    sharded, autocast) gather weights and gradients around it.

    Args:
      model: the target, or a wrapper of peft around it.
      traits: what `probe` found.
      objective: what is minimized; a call gives the CLM loss its share.
      kernels: whether Triton's kernels may be used where they can.
    """
    target = _bare(model)

    def forward(
        input_ids: Tensor,
        clm_weight: float,
        clm_count: Tensor,
        fusion_count: Tensor,
        chunk_count: Tensor | None = None,
        position_ids: Tensor | None = None,
        **batch: Any,  # and what a wrapper adds: attention_mask, labels, ... all None
    ) -> dict[str, Tensor]:
        given = {n: batch[n] for n in _COLUMNS if batch.get(n) is not None}
        selected = rows.select_rows(input_ids, **given)
        now = dataclasses.replace(objective, clm_weight=clm_weight)
        means = {"clm_count": clm_count, "fusion_count": fusion_count}
        how = {**means, "chunk_count": chunk_count, "kernels": kernels}
        found = _losses(target, traits, input_ids, position_ids, selected, now, how)
        return {
            "loss": found.loss,
            "clm_sum": found.clm_sum,
            "fusion_sum": found.fusion_sum,
            "chunk_sum": found.chunk_sum,
            "agree_sum": found.agree_sum,
            "kept_sum": found.kept_sum,
            **metrics.of_rows(selected),
        }

    target.forward = forward


def _losses(
    model: Any,
    traits: Traits,
    input_ids: Tensor,
    position_ids: Tensor | None,
    selected: Rows,
    objective: Objective,
    how: dict[str, Any],
) -> Losses:
    if traits.plain_head:
        hidden = _hidden(model, input_ids, position_ids).flatten(0, 1)
        head = model.get_output_embeddings()
        states = hidden.index_select(0, selected.places)  # (n, d)
        how |= {"scale": traits.scale, "cap": traits.cap}
        if type(head).forward is not nn.Linear.forward:
            return loss.module_loss(states, head, selected, objective, **how)
        return heads.inside(
            head,
            states,
            lambda x: loss.head_loss(
                x, head.weight, head.bias, selected, objective, **how
            ),
        )
    places = {} if position_ids is None else {"position_ids": position_ids}
    output = type(model).forward(model, input_ids=input_ids, use_cache=False, **places)
    logits = output.logits.flatten(0, 1).index_select(0, selected.places)  # (n, v)
    return loss.logits_loss(logits, selected, objective, **how)


def companions(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the files of a model folder that training does not change."""
    for pattern in checkpoint.COMPANIONS:
        yield from sorted(p for p in folder.glob(pattern) if p.is_file())
