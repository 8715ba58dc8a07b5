"""How the Trainer writes checkpoints and goes on from them, in our protocol.

A checkpoint is what `states` writes, the weights as `save_pretrained` writes them
unless they lie in shards, the schedule's and the random numbers' states as transformers
writes them (read with `weights_only`), and the marker of `checkpoints`, last.
"""

import os
import pathlib
from typing import Any

import torch
import transformers

from train import adapters, checkpoints, faults, processes, states

_SCHEDULE = "scheduler.pt"


class SavingTrainer(transformers.Trainer):
    """A Trainer whose checkpoints are whole or not there, on any number of processes.

    Under DeepSpeed the optimizer's states, and the weights once more, are left to it.

    Attributes:
      sharded: whether each process writes the part of weights and states that it holds.
    """

    sharded = False
    is_fsdp_enabled: bool

    def create_accelerator_and_postprocess(self) -> None:
        """Sees to it that what is to be sharded is sharded on CPUs, too."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and not self.is_fsdp_enabled:
            processes.shard_on_cpus(self.accelerator, self.args.fsdp_plugin_args)
            self.is_fsdp_enabled = True

    def whole_weights(self) -> dict[str, torch.Tensor]:
        """Returns the weights by name, on the first process; all must call it.

        Of a model with adapters it is theirs alone.
        """
        return states.gathered(self.model, trainable=hasattr(self.model, "peft_config"))

    def save_model(
        self, output_dir: str | None = None, _internal_call: bool = False
    ) -> None:
        """Writes weights and configuration, unless the weights lie in shards."""
        if not self.sharded:
            weights = self.whole_weights()
            with faults.shared():
                if not hasattr(self.model, "peft_config"):
                    self._save(output_dir, weights)
                elif self.args.should_save:
                    folder = pathlib.Path(output_dir or self.args.output_dir)
                    adapters.write(self.model, weights, folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            # A pickle that nobody reads: the settings are in settings.json.
            os.remove(os.path.join(output_dir or "", "training_args.bin"))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        folder = pathlib.Path(output_dir)
        states.save(folder, self.model, self.optimizer, sharded=self.sharded)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), folder / _SCHEDULE)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with faults.shared():
            super()._save_checkpoint(model, trial)
        folder = pathlib.Path(self.args.output_dir)
        folder = folder / f"checkpoint-{self.state.global_step}"
        with faults.shared():
            if self.args.local_process_index == 0:
                checkpoints.flush(folder)  # what its machine wrote
        with faults.shared():
            if self.args.should_save:
                checkpoints.complete(folder)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: Any = None
    ) -> None:
        # Whole weights are in the model already, read by from_pretrained: the Trainer's
        # method goes by the names in the model, not those in the file, and skips what
        # it cannot find (GPT-NeoX's head).
        folder = pathlib.Path(resume_from_checkpoint)
        if not self.is_deepspeed_enabled and states.is_sharded(folder):
            states.load_weights(folder, self.model if model is None else model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = pathlib.Path(checkpoint)
        states.load_optimizer(folder, self.model, self.optimizer)
        self.lr_scheduler.load_state_dict(
            torch.load(folder / _SCHEDULE, weights_only=True)
        )
        rates = self.lr_scheduler.get_last_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
