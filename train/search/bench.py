"""Merged models in memory: made by the merger's own functions, and never written.

The inputs are mapped into memory once, and a trial's tensors are what `fusebeam merge`
would write, to the bit: same plan, same functions, same draws. They are given to
transformers as a file's would be, so what is measured is what a merge of the trial's
recipe would come to.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from schemas.errors import FusionError
from train.merge import mapped, match, work
from train.merge.inputs import Input
from train.merge.match import Sources
from train.merge.reading import Opened, Reading
from train.merge.rules import Rule
from transforms import causal, checkpoint, loading


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bench:
    """The inputs of a merge, opened, and how merged models are loaded.

    Attributes:
      sources: the models.
      opened: the same, mapped.
      stored: what floats of a merged model are stored in, as safetensors calls it; None
        = each tensor as in the lead.
      seed: of what is drawn at random, in every trial the same.
      dtype: what a model computes in.
      device: where it runs.
      config: of the lead.
      kind: the lead's class.
    """

    sources: Sources
    opened: Opened
    stored: str | None
    seed: int
    dtype: torch.dtype
    device: torch.device
    config: Any
    kind: Any

    def tensors(self, rules: Sequence[Rule]) -> dict[str, torch.Tensor]:
        """Merges all tensors, each as it would be stored.

        Raises:
          FusionError: if a file of the models was written meanwhile.
          NotFiniteError: if one is not finite.
          ValueError: if the rules do not fit the models.
        """
        planned, _ = match.match(self.sources, rules, self.stored)
        mapped.check(self.opened.of)  # a file cut short would end the process
        try:
            with self.opened.of.set_threads():
                return {
                    one.key: work.stored(self.opened, one, self.seed) for one in planned
                }
        finally:  # what is not finite may be of such a file, and no fault of the merge
            mapped.check(self.opened.of)

    def model(self, rules: Sequence[Rule]) -> Any:
        """Merges a model and loads it.

        Raises:
          FusionError: if memory does not hold it, or a file of the models was written
            meanwhile.
          NotFiniteError: if a tensor is not finite.
          SchemaError: if the lead lacks a weight of its architecture.
          ValueError: if the rules do not fit the models.
        """
        try:
            return self._loaded(self.tensors(rules))
        except (RuntimeError, MemoryError, OSError) as error:
            if not causal.is_out_of_memory(error):
                raise
            told, kind = str(error).partition("\n")[0], str(self.dtype)
            raise FusionError(
                "memory must hold a merged model, as it is stored and in"
                f" {kind.removeprefix('torch.')} on {self.device}, but does not"
                f" ({told}); end what else takes it, or choose a smaller dtype, and"
                " repeat the command, which goes on from here"
            ) from error

    def _loaded(self, weights: dict[str, torch.Tensor]) -> Any:
        """Gives weights to a model of the lead's architecture."""
        with causal.quiet():
            made, told = self.kind.from_pretrained(
                None,
                config=copy.deepcopy(self.config),
                state_dict=weights,
                dtype=self.dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        lead = self.sources.models[self.sources.lead]
        loading.refuse_incomplete(f"{lead.name} ({lead.model})", made, told)
        return made.to(self.device).eval()


def open_bench(
    sources: Sources,
    *,
    stored: str | None,
    seed: int,
    threads: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Bench:
    """Opens the inputs of a merge.

    Args:
      sources: the models.
      stored: what floats of a merged model are stored in; None = each as in the lead.
      seed: of what is drawn at random.
      threads: of torch while tensors are merged, as of `fusebeam merge`.
      dtype: what a model computes in.
      device: where it runs.
    """
    import transformers  # takes seconds

    reading = Reading(
        models=tuple(sources.models),
        stamps=tuple(held.stamps for held in sources.tensors),
        lead=sources.lead,
        has_base=sources.has_base,
        threads=threads,
        output="",  # nothing is written, and no pass goes before
        identity="",
    )
    config = read_config(sources.models[sources.lead])
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(config)
    return Bench(
        sources=sources,
        opened=mapped.open_models(reading),
        stored=stored,
        seed=seed,
        dtype=dtype,
        device=device,
        config=config,
        kind=type(empty),
    )


def read_config(model: Input) -> Any:
    """Reads the configuration of a model, as transformers has it."""
    import transformers  # takes seconds

    folder = model.folder_with((checkpoint.CONFIG,))
    local = checkpoint.locate(folder, config_only=True).folder
    return transformers.AutoConfig.from_pretrained(
        str(local), trust_remote_code=False, local_files_only=True
    )
