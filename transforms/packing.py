"""How windows are laid into batches: packed end to end, or padded to one length.

Packed, windows lie in one row, positions begin anew in each, and attention stays inside
each: no token is padding, and every matrix product is over all tokens. Whether a model
takes that is tried when it is loaded, as nothing that it says of itself can be relied
on: a few windows must come out of a packed row as they do one by one, and must not
feel what their neighbours say. A model that fails, one with a state that runs on from
window to window, say, gets windows of like length, padded on the right.
"""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from schemas.shapes import Float
from transforms import causal, packed_attention, transfers
from transforms.causal import Halves
from transforms.functional import batches
from transforms.packed_attention import Kernel, Layout, Mask, UnpackableError

logger = logging.getLogger(__name__)

_TRIAL = (6, 17, 11)
"""Tokens of the windows that are tried."""
_LONG_TRIAL = 300
"""Tokens of one more on a GPU, whose kernels go over longer ones in several steps."""
_TRIAL_FLOPS = {"cpu": 3e11, "cuda": 1e14}
"""What may be spent on one window that is longer than a sliding window: on a GPU what
a model of 7B takes for one of 4,096, a second in all."""
_LONGEST_TRIAL = 8192 + 5
_FAR = 2**17
"""Where masks are looked at, if nothing bounds the model's input."""


@runtime_checkable
class Way(Protocol):
    """How windows are laid into batches and run."""

    @property
    def name(self) -> str:
        """What it is called in logs."""

    @property
    def why(self) -> str:
        """Why it is none that is faster; empty where it is the fastest."""

    def plan(self, lengths: Iterable[int], batch_tokens: int) -> Iterator[list[int]]:
        """Groups windows of such lengths, as they come, into batches of places."""

    def size(self, lengths: Sequence[int]) -> int:
        """Counts the tokens that a batch makes the model read."""

    def features(self, rows: Sequence[np.ndarray]) -> Float[Tensor, "p f"]:
        """Runs the model's body on a batch; returns what it makes of each token."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Padded:
    """Windows of like length are rows of a batch, padded on the right.

    Attributes:
      halves: the model.
      most: a window of more tokens is alone in its batch; None = none is.
      why: why they are not packed.
    """

    halves: Halves
    most: int | None
    why: str

    @property
    def name(self) -> str:
        """What it is called in logs."""
        return "padded"

    def plan(self, lengths: Iterable[int], batch_tokens: int) -> Iterator[list[int]]:
        """Groups windows of such lengths, as they come, into batches of places."""
        return batches.plan_pools(lengths, batch_tokens, self.most)

    def size(self, lengths: Sequence[int]) -> int:
        """Counts the tokens that a batch makes the model read."""
        return len(lengths) * max(lengths)

    def features(self, rows: Sequence[np.ndarray]) -> Float[Tensor, "p f"]:
        """Runs the model's body on a batch; returns what it makes of each token."""
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.empty(len(rows), int(lengths.max()), dtype=torch.int64)  # (b, t)
        for into, row in zip(ids, rows, strict=True):
            into[: len(row)] = torch.from_numpy(row)
            # Padding weighs 0 in front of it, but 0 * NaN is NaN: where a token is
            # broken, as it may be, its own window should break and no other.
            into[len(row) :] = int(row[-1])
        real = (torch.arange(ids.shape[1]) < lengths[:, None]).flatten()
        device = self.halves.device
        features = self.halves.features(transfers.upload(ids, device)).flatten(0, 1)
        if real.all():
            return features
        places = real.nonzero()[:, 0]  # a mask on a GPU would be waited for
        return features[transfers.upload(places, device)]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """Windows lie end to end in one row.

    Attributes:
      halves: the model.
      most: a window of more tokens is alone in its batch; None = none is.
      configs: configurations of it and its parts.
      how: what computes attention.
      kernel: its function.
      calls: how often a pass must ask for attention; None = not known yet.
      why: why none that is faster computes it; empty where none is.
    """

    halves: Halves
    most: int | None
    configs: Sequence[Any]
    how: str
    kernel: Kernel
    calls: int | None = None
    why: str = ""

    @property
    def name(self) -> str:
        """What it is called in logs."""
        return f"packed, {self.how}"

    def plan(self, lengths: Iterable[int], batch_tokens: int) -> Iterator[list[int]]:
        """Groups windows of such lengths, as they come, into batches of places."""
        return batches.fill_batches(lengths, batch_tokens, self.most)

    def size(self, lengths: Sequence[int]) -> int:
        """Counts the tokens that a batch makes the model read."""
        return sum(lengths)

    def features(self, rows: Sequence[np.ndarray]) -> Float[Tensor, "p f"]:
        """Runs the model's body on a batch; returns what it makes of each token.

        Raises:
          ValueError: if a layer asks for what it did not when it was tried.
        """
        try:
            return self.run(rows, Layout([len(row) for row in rows], self.kernel))
        except UnpackableError as error:
            raise ValueError(
                "layers must ask for the same as when the model was tried, but"
                f" {error}; score with --pad"
            ) from error

    def run(
        self, rows: Sequence[np.ndarray], layout: Layout, *, told: bool = False
    ) -> Float[Tensor, "p f"]:
        """Does that with a given layout.

        Args:
          rows: token ids of each window.
          layout: its lengths.
          told: whether `layout.masks` is to be filled.

        Raises:
          UnpackableError: if a layer did not ask for attention inside windows.
        """
        ids = torch.from_numpy(np.concatenate(rows)).long()[None]
        places = torch.cat([torch.arange(len(row)) for row in rows])[None]
        device = self.halves.device
        with packed_attention.lying(self.configs, layout, told=told):
            features = self.halves.features(
                transfers.upload(ids, device), transfers.upload(places, device)
            )[0]
        if self.calls is not None and layout.calls != self.calls:
            raise UnpackableError(
                f"they asked for attention inside windows {layout.calls} times in a"
                f" pass, and {self.calls} times then"
            )
        return features


def choose(halves: Halves, *, packed: bool = True) -> Way:
    """Tries how a model can be run, and tells the log.

    Args:
      halves: the model, in evaluation mode.
      packed: whether packing is wanted at all.
    """
    if not packed:
        return Padded(halves=halves, most=_most(halves), why="as was asked for")
    why = ""
    with torch.inference_mode():
        try:
            for way in _ways(halves):
                if not (doubt := _doubt(way)):
                    _tell(type(halves.model).__name__, way.name, why)
                    return dataclasses.replace(way, calls=_calls(way), why=why)
                why = why or f"{way.how}: {doubt}"
        except UnpackableError as error:
            why = str(error)
    _tell(type(halves.model).__name__, "padded", why)
    return Padded(halves=halves, most=_most(halves), why=why)


@functools.cache  # once for each, however many scorers there are
def _tell(model: str, way: str, why: str) -> None:
    if way == "padded":
        logger.warning(
            "windows of a %s are padded, those of like length together, and not packed:"
            " %s",
            model,
            why,
        )
    else:
        behind = f" (not by {why})" if why else ""
        logger.info("windows of a %s are %s%s", model, way, behind)


def _ways(halves: Halves) -> Iterator[Packed]:
    """Yields the ways to pack that may do, the fastest first."""
    if not isinstance(halves.model, nn.Module):
        raise UnpackableError("its weights are not all here")
    dtype = next(halves.model.parameters()).dtype
    for how, kernel in packed_attention.kernels(halves.device, dtype).items():
        yield Packed(
            halves=halves,
            most=_most(halves),
            configs=_configs(halves.model),
            how=how,
            kernel=kernel,
        )


def _doubt(way: Packed) -> str:
    """Tries a way on a few windows; returns why it will not do, or nothing."""
    try:
        slidings = _slidings(way)
        lengths = [*_TRIAL, *_beyond(way.halves, slidings)]
        if way.halves.device.type == "cuda" and max(lengths) < _LONG_TRIAL:
            longest = causal.longest_input(way.halves.model)
            lengths.append(min(_LONG_TRIAL, longest or _LONG_TRIAL))
        return _differs(way, lengths)
    except UnpackableError as error:
        return str(error)
    except Exception as error:
        # Whatever a model that knows no packed rows makes of one; lack of memory,
        # which says nothing of that, is not for us to hide.
        if causal.is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _calls(way: Packed) -> int:
    """Counts how often a pass asks for attention."""
    row = _words(way.halves, 0, _TRIAL[0])
    layout = Layout([len(row)], way.kernel)
    way.run([row], layout)
    return layout.calls


def _slidings(way: Packed) -> set[int]:
    """Returns what its layers are told of sliding windows.

    Raises:
      UnpackableError: if layers see by other rules than they are told, or do not ask
        `packed_attention`.
    """
    row = _words(way.halves, 0, _TRIAL[0])
    layout = Layout([len(row)], way.kernel)
    with _unless_asked(layout):
        way.run([row], layout, told=True)
    told = {sliding for sliding in layout.slidings if sliding is not None}
    far = causal.longest_input(way.halves.model) or _FAR
    there = causal.entrance(way.halves.model)
    for mask, sliding in layout.rules:
        _compare(mask, sliding, far, there)
    return told


def _compare(mask: Mask, sliding: int | None, far: int, there: torch.device) -> None:
    """Compares what a layer is to see with the sliding window that it names.

    Nothing is run for that, so that no window is too wide.

    Args:
      mask: by what it would see.
      sliding: `How.sliding` of the layer.
      far: tokens that the model can read, or more than any window has.
      there: where the model's ids are, and what a mask may look things up in.

    Raises:
      UnpackableError: if they differ.
    """
    one = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=there)
    keys = torch.arange(far)
    across = keys.view(1, 1, 1, -1).to(there)
    for query in (far // 3, far // 2, far - 1):
        found = mask(one, one, one + query, across)
        seen = torch.as_tensor(found).flatten().cpu()
        first = query + 1 - (sliding or far)
        if not torch.equal(seen, (first <= keys) & (keys <= query)):
            raise UnpackableError(
                f"a layer sees {int(seen.sum())} of {query + 1} tokens, and not by the"
                f" sliding window that it names ({sliding or 'none'})"
            )


@contextlib.contextmanager
def _unless_asked(layout: Layout) -> Iterator[None]:
    """Refuses a model that does not ask for attention, whatever it fails of."""
    failed: Exception | None = None
    try:
        yield
    except UnpackableError:
        raise
    except Exception as error:
        if layout.calls or causal.is_out_of_memory(error):
            raise
        failed = error
    if not layout.calls:
        raise UnpackableError("its attention is not AttentionInterface's") from failed


def _beyond(halves: Halves, slidings: set[int]) -> list[int]:
    """Returns the length of a window that the widest sliding one, if cheap, cuts.

    Cheap in memory, too: one by one, a model may make a mask of its length squared.
    """
    weights = sum(weight.numel() for weight in halves.model.parameters())
    limit = causal.longest_input(halves.model)
    cheap = [
        sliding + 5
        for sliding in slidings
        if 2 * weights * (sliding + 5) <= _TRIAL_FLOPS.get(halves.device.type, 0)
        and sliding + 5 <= min(limit or _LONGEST_TRIAL, _LONGEST_TRIAL)
    ]
    return [max(cheap)] if cheap else []


def _differs(way: Packed, lengths: Sequence[int]) -> str:
    """Compares a packed row with its windows one by one, and with other neighbours."""
    halves = way.halves
    rows = [_words(halves, place, n) for place, n in enumerate(lengths)]
    alone = [
        halves.features(
            transfers.upload(torch.from_numpy(row).long()[None], halves.device)
        )[0]
        for row in rows
    ]
    layout = Layout(lengths, way.kernel)
    packed = torch.split(way.run(rows, layout), list(lengths))
    exact = packed[0].dtype == torch.float32
    worst = max(_gap(one, other) for one, other in zip(packed, alone, strict=True))
    if not worst <= (1e-4 if exact else 0.1):
        return f"windows differ by {worst:.1e} from what they are one by one"
    for kept in (0, 1):  # every other window, and then the others
        mixed = [
            row if place % 2 == kept else _words(halves, place + len(rows), len(row))
            for place, row in enumerate(rows)
        ]
        other = torch.split(way.run(mixed, layout), list(lengths))
        felt = max(_gap(other[p], packed[p]) for p in range(kept, len(rows), 2))
        if not felt <= (1e-5 if exact else 2e-2):
            return f"windows feel others by {felt:.1e}"
    return ""


def _gap(one: Float[Tensor, "t f"], other: Float[Tensor, "t f"]) -> float:
    """Returns the largest difference at a position, relative to what is there.

    A position that is not finite, of a broken token, must be so in both.
    """
    known = other.isfinite().all(-1)
    if not torch.equal(known, one.isfinite().all(-1)):
        return math.inf
    apart = (one.float() - other.float())[known].norm(dim=-1)
    size = other.float()[known].norm(dim=-1)
    return float((apart / size.clamp(min=1e-12)).max()) if known.any() else 0.0


def _words(halves: Halves, number: int, length: int) -> np.ndarray:
    """Makes up tokens: spread over the vocabulary, others for each number."""
    ids = (np.arange(length) * 7919 + number * 104729 + 11) % halves.width
    return ids.astype(np.int32)


def _most(halves: Halves) -> int | None:
    """Returns the least of what `longest_unscaled` says of a model and its parts."""
    known = [causal.longest_unscaled(config) for config in _configs(halves.model)]
    return min((most for most in known if most is not None), default=None)


def _configs(model: Any) -> list[Any]:
    """Returns the configurations of a model and its parts, the whole's in front."""
    parts = model.modules() if isinstance(model, nn.Module) else [model]
    found = (getattr(part, "config", None) for part in parts)
    return list({id(c): c for c in found if hasattr(c, "get_text_config")}.values())
