"""Causal language models: run in two halves, and what they run on.

The logits of a batch are the largest thing a language model makes: 4,096 positions over
a vocabulary of 262,144 are 4 GB. So a batch goes through the model's body once, and the
features that come out go through its head a few positions at a time. The head's own
code runs, caps and scales included, on a stand-in for the body. Where a model cannot be
cut like that, which is tried on a dozen tokens, its logits are its features.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from schemas.shapes import Float, Int64

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_WITHOUT_BFLOAT16 = (
    *("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"),
    *("AVX512_CORE", "AVX512_CORE_VNNI"),
)
"""Sets of instructions, as oneDNN calls them, without bfloat16's products."""
_LONGEST = ("max_position_embeddings", "max_seq_len", "n_positions")
"""What configurations call the longest input."""
_PROBE_TOKENS = (12, 5)
"""Tokens of the trial, and of its beginning, which must not feel what follows."""


def name_device(device: str) -> torch.device:
    """Resolves `auto` to CUDA where there is one; others need not be on this machine.

    Raises:
      ValueError: if the device is unknown.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or not (index or "0").isdecimal():
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    return torch.device(device)


def choose_device(device: str) -> torch.device:
    """Resolves a device as `name_device` does, and sees that it is there.

    Raises:
      ValueError: if the device is unknown or not there.
    """
    named = name_device(device)
    if named.type == "cuda" and (named.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {device} must be there, but there are {torch.cuda.device_count()}"
            " CUDA devices; use --device=cpu"
        )
    return named


def cpu_multiplies_bfloat16() -> bool:
    """Says whether this CPU has instructions for it that torch may use.

    The products are oneDNN's, which heeds its own variable ONEDNN_MAX_CPU_ISA.
    """
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _WITHOUT_BFLOAT16:
        return False
    told = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in told)


def choose_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """Resolves `auto`: bfloat16 where this machine multiplies it faster, else float32.

    Some CPUs do, Intel's with AMX or AVX512-BF16 and AMD's since Zen 4; others are 60
    times slower at it. float16 overflows in some models: it is not chosen unasked.

    Raises:
      ValueError: if it is `auto` for a GPU, and this machine has none to look at.
    """
    if dtype != "auto":
        return _DTYPES[dtype]
    if device.type != "cuda":
        return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
    if not torch.cuda.is_available():
        raise ValueError(
            f"dtype must be given for device {device} where the command starts on a"
            " machine without a GPU, got auto; pass --dtype=bfloat16, float16 or"
            " float32, as the workers' GPUs multiply it"
        )
    fast = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turns off the progress bars and remarks of transformers, which are not ours."""
    import transformers  # takes seconds

    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def is_out_of_memory(error: Exception) -> bool:
    """Tells a lack of memory from other errors; torch's CPU has no class for it."""
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or "DefaultCPUAllocator" in str(error)
    )


def longest_input(model: Any) -> int | None:
    """Returns how many tokens a model can read, or None where nothing bounds them."""
    return longest_told(model.config)


def longest_told(config: Any) -> int | None:
    """Returns how many tokens a configuration says can be read; None where it doesn't.

    Args:
      config: as transformers has it.
    """
    config = config.get_text_config()
    found = [getattr(config, name, None) for name in _LONGEST]
    return next((n for n in found if isinstance(n, int) and n > 0), None)


def entrance(model: Any) -> torch.device:
    """Returns where a model takes its ids: its first layer's device.

    Where accelerate has laid a model over devices, weights may be on none of them while
    they are not in use; its hooks know where each layer runs.
    """
    parts = model.modules() if isinstance(model, nn.Module) else ()
    for module in parts:
        hook = getattr(module, "_hf_hook", None)
        where = getattr(hook, "execution_device", None)
        if where is not None:
            return torch.device(where)
    return next(model.parameters()).device


def longest_unscaled(config: Any) -> int | None:
    """Returns up to how many tokens positions are turned alike; None = any number.

    Beyond it, "dynamic" and "longrope" rotary embeddings turn all tokens of a forward
    pass by what its longest row needs, so that a longer row changes the others.

    Args:
      config: as transformers has it.
    """
    config = config.get_text_config()
    told = getattr(config, "rope_parameters", None)
    told = told or getattr(config, "rope_scaling", None) or {}
    limits = []
    for one in (told, *filter(lambda part: isinstance(part, dict), told.values())):
        kind = str(one.get("rope_type", one.get("type", "")))
        if "dynamic" in kind or kind == "longrope":
            name = "original_max_position_embeddings"
            own = one.get(name) or getattr(config, name, None)
            limits.append(own or config.max_position_embeddings)
    return min(limits, default=None)


_PLANS = threading.RLock()


@contextlib.contextmanager
def without_plans() -> Iterator[None]:
    """Keeps attention from cuDNN's kernels, which need a plan for each new shape.

    Making one takes 0.4 s, longer than a batch, and hardly two batches of windows of
    mixed length are of one shape. Torch's own kernels need none.
    """
    kernels = torch.backends.cuda
    with _PLANS:  # the setting is the process's, and models may run in several threads
        before = kernels.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
        kernels.enable_cudnn_sdp(False)
        try:
            yield
        finally:
            kernels.enable_cudnn_sdp(before)


_LOCKS: WeakKeyDictionary[Any, contextlib.AbstractContextManager[Any]] = (
    WeakKeyDictionary()
)


def lock_of(model: Any) -> contextlib.AbstractContextManager[Any]:
    """Returns the one lock of a model: how it runs is told to the model itself."""
    return _LOCKS.setdefault(model, threading.Lock())


class Halves:
    """A model that gives logits for some of a batch's positions at a time.

    Attributes:
      model: the model.
      width: logits at each position; token ids are below it.
      dtype: of its logits.
      device: where its features are, and so what goes with them; its ids may be
        anywhere.
    """

    def __init__(self, model: Any) -> None:
        self.model = self._model = model
        self._body: Any = model.base_model
        self._entrance = self.device = entrance(model)
        self._cut = self._body is not model
        self._output: Any = None
        self._compiled: Any = None
        with torch.inference_mode():
            self.width = self._probe()

    def compile(self) -> None:
        """Has torch compile the body, for inputs of any length, when it runs next."""
        body = self._body if self._cut else self._model
        self._compiled = torch.compile(body, dynamic=True)

    @property
    def cut(self) -> bool:
        """Whether features are less than logits."""
        return self._cut

    def features(
        self,
        input_ids: Int64[Tensor, "b t"],
        position_ids: Int64[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t f"]:
        """Runs the body. Rows may be padded on the right: nothing looks ahead.

        Args:
          input_ids: tokens.
          position_ids: where they stand, if not at 0, 1, 2 and so on.
        """
        run = self._body if self._cut else self._model
        if self._compiled is not None:
            run = self._compiled
        given = {"input_ids": input_ids, "position_ids": position_ids}
        there = {k: v.to(self._entrance) for k, v in given.items() if v is not None}
        with without_plans():
            output = run(**there, use_cache=False)
        return output.last_hidden_state if self._cut else output.logits

    def logits(self, features: Float[Tensor, "p f"]) -> Float[Tensor, "p v"]:
        """Runs the head on the features of some positions."""
        if not self._cut:
            return features
        # Of a model over several devices, logits come out where its ids are.
        ids = torch.zeros(1, len(features), dtype=torch.int64, device=features.device)
        with _standing_in(self._body, self._output(last_hidden_state=features[None])):
            return self._model(input_ids=ids, use_cache=False).logits[0]

    def _probe(self) -> int:
        """Tries whether the model is causal, and whether it can be cut.

        Raises:
          ValueError: if a token's logits depend on what follows it.
        """
        many, few = _PROBE_TOKENS
        ids = torch.arange(many, device=self._entrance)[None]
        whole = self._model(input_ids=ids, use_cache=False).logits[0]
        begin = self._model(input_ids=ids[:, :few], use_cache=False).logits[0]
        if not self._agree(begin, whole[:few]):
            raise ValueError(
                f"a {type(self._model).__name__} must not look ahead to score text, but"
                " its logits depend on later tokens; choose a causal language model"
            )
        if self._cut:
            output = self._body(input_ids=ids, use_cache=False)
            self._output = type(
                output
            )  # heads ask for more than features: routing, say
            self.device = output.last_hidden_state.device
            trial = self.logits(output.last_hidden_state[0])
            self._cut = self._agree(trial.to(whole.device), whole)
        if not self._cut:
            self.device = self._entrance
        self.dtype: torch.dtype = whole.dtype
        return whole.shape[-1]

    def _agree(self, left: Float[Tensor, "p v"], right: Float[Tensor, "q w"]) -> bool:
        """Says whether logits are equal but for rounding, which depends on shapes.

        What is not finite, masked ids or a broken token, must be so in both.
        """
        if left.shape != right.shape:
            return False
        one, other = (z.float().log_softmax(-1) for z in (left, right))
        known = one.isfinite()
        if not torch.equal(known, other.isfinite()):
            return False
        rounded = getattr(self._model, "is_quantized", False)
        exact = self._model.dtype == torch.float32 and not rounded
        gap = (one - other)[known].abs()
        return not gap.numel() or bool(gap.mean() < (1e-3 if exact else 0.1))


@contextlib.contextmanager
def _standing_in(body: nn.Module, output: Any) -> Iterator[None]:
    """Makes a body return a given output instead of running."""
    before = vars(body).get("forward")  # a wrapper of accelerate's, if there is one
    vars(body)["forward"] = lambda *_, **__: output
    try:
        yield
    finally:
        del vars(body)["forward"]
        if before is not None:
            vars(body)["forward"] = before
