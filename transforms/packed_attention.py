"""Attention inside windows that lie end to end in one row, and not between them.

transformers hands a layer's queries, keys and values to the function that the model's
`attn_implementation` names. While `lying` says how windows lie, that is `_attend` of
this module: no window sees another, and no mask of T by T is made for a row of T
tokens. Sliding windows, soft caps, shared key heads and attention sinks are heeded;
what else a layer asks for is refused by an `UnpackableError`, and the model is run
another way.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from schemas.shapes import Bool, Float, Int32
from transforms import transfers

_NAME = "fusebeam_packed"
_TOLD = "fusebeam_packed_told"
"""The same, for which transformers also says by what masks layers are to see."""


_DENSE_BYTES = 200_000_000
"""What products of queries and keys may take at once, where they exist: 16 for each."""


Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of places of batch, head, query and key: whether the key is seen."""


class UnpackableError(Exception):
    """A layer asks for what packed attention does not do."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What a layer asks for.

    Attributes:
      scale: factor of the products of queries and keys.
      sliding: keys that a query sees, its own position's among them; None = all
        before it.
      softcap: c of c tanh(x / c), which bounds the scaled products; None = none.
      sinks: a logit of each head that takes its share of the softmax; None = none.
    """

    scale: float
    sliding: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Whether fused kernels can do it."""
        return self.softcap is None and self.sinks is None


class Layout:
    """How windows lie in a row of T tokens, and what computes their attention.

    Attributes:
      lengths: tokens of each window, end to end.
      longest: the most of them.
      kernel: what computes it.
      calls: how often attention was asked for.
      slidings: the `How.sliding` of the layers that were run.
      masks: what transformers would make masks by, where that was asked for.
      rules: of the layers that were run, then, by what of these they would have seen,
        and their `How.sliding`.
    """

    def __init__(self, lengths: Sequence[int], kernel: "Kernel") -> None:
        self.lengths = tuple(lengths)
        self.longest = max(lengths)
        self.kernel = kernel
        self.calls = 0
        self.slidings: set[int | None] = set()
        self.masks: list[Mask] = []
        self.rules: set[tuple[Mask, int | None]] = set()
        self._ends: dict[torch.device, Tensor] = {}

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Yields neighbours of one length: where they begin, how long, how many."""
        start = 0
        for length, alike in groupby(self.lengths):
            count = len(list(alike))
            yield start, length, count
            start += length * count

    def ends(self, device: torch.device) -> Int32[Tensor, " n"]:
        """Returns where windows begin, and T, on a device."""
        if device not in self._ends:
            sums = torch.tensor((0, *self.lengths)).cumsum(0)
            self._ends[device] = transfers.upload(sums.int(), device)
        return self._ends[device]


Kernel = Callable[[Tensor, Tensor, Tensor, Layout, How], Tensor]
"""From queries, keys and values, (1, h, T, f) each, to (1, T, h, f)."""

_LAYOUT: ContextVar[Layout] = ContextVar("how windows lie")


@contextlib.contextmanager
def lying(
    configs: Sequence[Any], layout: Layout, *, told: bool = False
) -> Iterator[None]:
    """Makes models compute attention inside windows alone.

    Args:
      configs: the models' configurations, those of their parts behind their own.
      layout: how the windows lie.
      told: whether `layout.masks` and `layout.rules` are to be filled.

    Raises:
      UnpackableError: if transformers is too old to be told.
    """
    _register()
    before = [config._attn_implementation for config in configs]
    token = _LAYOUT.set(layout)
    try:
        for config in configs:
            config._attn_implementation = _TOLD if told else _NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
        _LAYOUT.reset(token)


@functools.cache
def _register() -> None:
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
    except ImportError as error:
        raise UnpackableError(
            "transformers must have AttentionMaskInterface, as it has since 4.53"
        ) from error
    AttentionInterface.register(_NAME, _attend)
    AttentionInterface.register(_TOLD, _attend_told)
    AttentionMaskInterface.register(_TOLD, _note_mask)


def _note_mask(*_: Any, mask_function: Mask, **__: Any) -> Tensor:
    """Notes a mask, and returns what tells a layer that is given it which one it is."""
    layout = _LAYOUT.get()
    layout.masks.append(mask_function)
    tokens = sum(layout.lengths)
    return torch.full((1, 1, tokens, tokens), len(layout.masks) - 1)


def _causal(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Is the mask of a layer that is given none."""
    return key <= query


def _attend_told(
    module: Any,
    query: Float[Tensor, "1 h t f"],
    key: Float[Tensor, "1 g t f"],
    value: Float[Tensor, "1 g t e"],
    attention_mask: Any,
    **more: Any,
) -> tuple[Float[Tensor, "1 t h e"], None]:
    """Does as `_attend`, and notes which mask a layer was given."""
    layout = _LAYOUT.get()
    mask: Mask = _causal
    if isinstance(attention_mask, Tensor) and attention_mask.dtype == torch.int64:
        mask = layout.masks[int(attention_mask[0, 0, 0, 0])]
        attention_mask = None
    layout.rules.add((mask, more.get("sliding_window") or None))
    return _attend(module, query, key, value, attention_mask, **more)


@torch.compiler.disable  # how windows lie differs from batch to batch
def _attend(
    module: Any,
    query: Float[Tensor, "1 h t f"],
    key: Float[Tensor, "1 g t f"],
    value: Float[Tensor, "1 g t e"],
    attention_mask: Any,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " h"] | None = None,
    is_causal: bool | None = None,
    position_ids: Any = None,
    **more: Any,
) -> tuple[Float[Tensor, "1 t h e"], None]:
    """Does what attention functions of transformers do, window by window."""
    layout = _LAYOUT.get()
    layout.calls += 1
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    unknown = [name for name, given in more.items() if isinstance(given, Tensor)]
    for bad, what in (
        (attention_mask is not None, "a mask of its own"),
        (bool(unknown), ", ".join(unknown)),
        (not causal, "attention to what follows"),
        (bool(dropout), "dropout"),
        (query.shape[:1] + query.shape[2:3] != (1, sum(layout.lengths)), "other rows"),
        (key.shape[2] != query.shape[2], "keys of other tokens"),
    ):
        if bad:
            raise UnpackableError(f"a layer asks for {what}")
    how = How(
        scale=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
        sliding=sliding_window or None,
        softcap=softcap or None,
        sinks=s_aux,
    )
    layout.slidings.add(how.sliding)
    return layout.kernel(query, key, value, layout, how), None


def by_window(
    query: Float[Tensor, "1 h t f"],
    key: Float[Tensor, "1 g t f"],
    value: Float[Tensor, "1 g t e"],
    layout: Layout,
    how: How,
) -> Float[Tensor, "1 t h e"]:
    """Attends in one window after the other, neighbours of one length together."""
    heads, tokens, features = query.shape[1], query.shape[2], value.shape[-1]
    made = query.new_empty(1, tokens, heads, features)
    for start, length, count in layout.runs():
        stop = start + length * count
        q, k, v = (
            part[0, :, start:stop]
            .reshape(part.shape[1], count, length, part.shape[3])
            .transpose(0, 1)
            for part in (query, key, value)
        )
        made[0, start:stop] = _dense(q, k, v, how).transpose(1, 2).flatten(0, 1)
    return made


def flash(
    query: Float[Tensor, "1 h t f"],
    key: Float[Tensor, "1 g t f"],
    value: Float[Tensor, "1 g t e"],
    layout: Layout,
    how: How,
) -> Float[Tensor, "1 t h e"]:
    """Attends in all windows at once, by the package flash-attn."""
    from flash_attn import flash_attn_varlen_func

    if how.sinks is not None:
        return by_window(query, key, value, layout, how)
    ends = layout.ends(query.device)
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    made = flash_attn_varlen_func(
        *(q, k, v, ends, ends, layout.longest, layout.longest),
        softmax_scale=how.scale,
        causal=True,
        window_size=_back(how),
        softcap=how.softcap or 0.0,
    )
    return made[None]


def varlen(
    query: Float[Tensor, "1 h t f"],
    key: Float[Tensor, "1 g t f"],
    value: Float[Tensor, "1 g t e"],
    layout: Layout,
    how: How,
) -> Float[Tensor, "1 t h e"]:
    """Attends in all windows at once, by the flash kernel that torch has built in.

    It is called by its own name, which no version since 2.5 changed.
    `torch.nn.attention.varlen`, since 2.10, asks other arguments in each, and may hand
    over to cuDNN (see `causal.without_plans`).
    """
    if not how.plain:
        return by_window(query, key, value, layout, how)
    ends = layout.ends(query.device)
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    left, right = _back(how)
    made: Any = torch.ops.aten._flash_attention_forward(
        *(q, k, v, ends, ends, layout.longest, layout.longest),
        0.0,  # dropout
        True,  # causal
        False,  # no mask to debug
        scale=how.scale,
        window_size_left=left,
        window_size_right=right,
    )
    return made[0][None]


def kernels(device: torch.device, dtype: torch.dtype) -> dict[str, Kernel]:
    """Returns what may compute attention there, the fastest first, by name."""
    found: dict[str, Kernel] = {}
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        with contextlib.suppress(ImportError):
            import flash_attn  # noqa: F401

            found["flash-attn"] = flash
        found["torch's flash attention"] = varlen
    return {**found, "attention window by window": by_window}


def _back(how: How) -> tuple[int, int]:
    """Returns how many keys before and behind its own a query sees; -1 = all."""
    return (-1 if how.sliding is None else how.sliding - 1, 0)


def _dense(
    query: Float[Tensor, "b h t f"],
    key: Float[Tensor, "b g t f"],
    value: Float[Tensor, "b g t e"],
    how: How,
) -> Float[Tensor, "b h t e"]:
    """Attends in rows of one window each."""
    length, shared = query.shape[2], query.shape[1] // key.shape[1]
    slides = how.sliding is not None and length > how.sliding
    if how.plain and not slides:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=how.scale, enable_gqa=shared > 1
        )
    if shared > 1:
        key = key.repeat_interleave(shared, 1)
        value = value.repeat_interleave(shared, 1)
    seen = _seen(length, how.sliding, query.device)
    if how.plain:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=how.scale
        )
    many, heads = query.shape[:2]
    sinks = None if how.sinks is None else how.sinks.float().repeat(many)
    made = query.new_empty(many * heads, length, value.shape[-1])
    queries, keys, values = (part.flatten(0, 1) for part in (query, key, value))
    pairs = max(1, _DENSE_BYTES // (16 * length * length))
    rows = min(length, max(1, _DENSE_BYTES // (16 * length)))
    for pair in range(0, many * heads, pairs):
        at = slice(pair, pair + pairs)
        sink = None if sinks is None else sinks[at]
        for row in range(0, length, rows):
            of = slice(row, row + rows)
            made[at, of] = _weigh(
                queries[at, of], keys[at], values[at], seen[of], how, sink
            )
    return made.view(many, heads, length, -1)


def _weigh(
    query: Float[Tensor, "n q f"],
    key: Float[Tensor, "n t f"],
    value: Float[Tensor, "n t e"],
    seen: Bool[Tensor, "q t"],
    how: How,
    sinks: Float[Tensor, " n"] | None,
) -> Float[Tensor, "n q e"]:
    """Attends by products that exist, for what fused kernels do not do."""
    products = query @ key.transpose(1, 2) * how.scale
    if how.softcap is not None:
        products = how.softcap * torch.tanh(products / how.softcap)
    products = products.masked_fill(~seen, -torch.inf).float()
    if sinks is not None:
        sinks = sinks.view(-1, 1, 1).expand(*products.shape[:2], 1)
        products = torch.cat([products, sinks], 2)
    weights = products.softmax(-1)[..., : key.shape[1]]
    return weights.to(value.dtype) @ value


def _seen(
    length: int, sliding: int | None, device: torch.device
) -> Bool[Tensor, "t t"]:
    """Says of each query which keys of its window it sees."""
    places = torch.arange(length, device=device)
    behind = places[:, None] - places
    seen = behind >= 0
    return seen if sliding is None else seen & (behind < sliding)
