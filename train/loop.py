"""The training loop: `transformers.Trainer` with our order, loss, checkpoints, logs."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import Tensor

from train import checkpoints, offload, processes
from train.config import TrainConfig
from train.data import Collator, FusedDataset
from train.order import StepBatches
from train.saving import SavingTrainer

Report = Callable[[str], None]
"""Is given one line for people, now and then."""

Line = dict[str, float | int]
"""One line of metrics.jsonl."""

_FIELDS = transformers.TrainingArguments.__dataclass_fields__
_CHECKPOINTING = next(  # transformers renamed it
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in _FIELDS
)


def arguments(
    config: TrainConfig, work: pathlib.Path, *, steps: int, device: str, dtype: str
) -> transformers.TrainingArguments:
    """Says in the words of transformers how to train."""
    schedules = {"constant": "constant_with_warmup"}
    return transformers.TrainingArguments(
        output_dir=str(work / "checkpoints"),
        max_steps=steps,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=schedules.get(config.schedule, config.schedule),
        warmup_steps=math.ceil(config.warmup_ratio * steps),
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        max_grad_norm=config.clip or 0.0,
        seed=config.seed,
        bf16=dtype == "bfloat16",
        use_cpu=device == "cpu",
        **{_CHECKPOINTING: config.gradient_checkpointing},
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        save_total_limit=None,  # ours are removed once the next is whole
        report_to=list(config.report_to),
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        dataloader_num_workers=config.readers,
        dataloader_pin_memory=device == "cuda",
        ignore_data_skip=True,  # the order begins at the step: see StepBatches
        disable_tqdm=True,
        log_level="error",
        **processes.arguments(config),
    )


class _StepEnds(transformers.TrainerCallback):
    """Logs the last step, too, and says how much of the run is done.

    A loss that is no number must not be published. The Trainer counts the epoch's part
    from the step that a run was resumed at.
    """

    def on_step_end(
        self,
        args: transformers.TrainingArguments,
        state: transformers.TrainerState,
        control: transformers.TrainerControl,
        **_: Any,
    ) -> transformers.TrainerControl:
        """Asks for a line of metrics after the last step."""
        state.epoch = state.global_step / state.max_steps
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control


class FusionTrainer(SavingTrainer):
    """Trains a model that `model.give_objective` has given its loss.

    The run is one epoch of `steps` full steps to the Trainer, whatever passes over the
    data they make.
    """

    # The loss is a sum over a micro-batch, divided by the counts of the whole step.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        config: TrainConfig,
        model: Any,
        args: transformers.TrainingArguments,
        dataset: FusedDataset,
        collate: Collator,
        *,
        work: pathlib.Path,
        report: Report,
    ) -> None:
        # Several devices of one process would split what is one number a batch.
        args._n_gpu = min(1, args.n_gpu)
        parts = config.accumulation * args.world_size
        args.per_device_train_batch_size = max(1, config.batch_size // parts)
        super().__init__(
            model=model, args=args, train_dataset=dataset, data_collator=collate
        )
        self.remove_callback(transformers.PrinterCallback)
        self.add_callback(_StepEnds)
        processes.settle(self.accelerator, dtype="bfloat16" if args.bf16 else "float32")
        self.sharded = config.checkpoint_form == "sharded" and config.lora_rank is None
        self.loss_is_scaled_for_ga = True
        self._config, self._work, self._report = config, work, report
        self._sums = torch.zeros(4, dtype=torch.float64)  # CLM, fusion, their counts
        self._start = 0
        self._begun = self._last = (0, 0.0)  # tokens, seconds
        self._share = config.clm_weight  # of the last step done
        self.last_line: Line = {}

    def get_train_dataloader(self) -> Any:
        """Returns this process's batches that are still to do, in `order`'s order."""
        config, args, data = self._config, self.args, self.train_dataset
        batches = StepBatches(
            data.group_rows,
            data.fingerprint,
            config.seed,
            steps=args.max_steps,
            start=self._start,
            step_rows=config.batch_size,
            accumulation=config.accumulation,
            process=args.process_index,
            processes=args.world_size,
        )
        return torch.utils.data.DataLoader(
            data,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=config.readers,
            pin_memory=args.dataloader_pin_memory,
            # A loader draws one number when it begins. The model's dropout must not
            # feel it: its own numbers are restored before that.
            generator=torch.Generator().manual_seed(config.seed),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """Takes the micro-batches of a step, and counts what its means are over."""
        batches = [b for _, b in zip(range(num_batches), epoch_iterator, strict=False)]
        counts = torch.zeros(3, dtype=torch.float32)
        for batch in batches:
            counted = batch["loss_mask"]
            covered = counted & (batch["top_ids"] >= 0).any(-1)
            counts += torch.stack([counted.sum(), covered.sum(), batch.pop("tokens")])
        counts = counts.to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum")
        self.state.num_input_tokens_seen += int(counts[2])
        return batches, counts[:2]

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        # Probabilities stay float32 where DeepSpeed would cast them to the model's.
        return {
            name: value.to(self.args.device, non_blocking=True)
            for name, value in inputs.items()
        }

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """Returns this micro-batch's share of the step's loss."""
        assert num_items_in_batch is not None, "get_batch_samples counts"
        clm_count, fusion_count = num_items_in_batch
        self._share = self._clm_weight()
        with self._kept_activations():
            losses = model(
                **inputs,
                clm_weight=self._share,
                clm_count=clm_count,
                fusion_count=fusion_count,
            )
        parts = torch.stack([losses["clm_sum"], losses["fusion_sum"]]).double()
        share = num_items_in_batch.double() / self.current_gradient_accumulation_steps
        self._sums = self._sums.to(parts.device)
        # Counts are of all processes, sums of this one.
        self._sums += torch.cat([parts * self.args.world_size, share])
        # Gradients are averaged over processes, and this is a part of a sum.
        return losses["loss"] * self.args.world_size

    def _kept_activations(self) -> contextlib.AbstractContextManager[object]:
        if self._config.activation_offload:
            return offload.activations()
        return contextlib.nullcontext()

    def _clm_weight(self) -> float:
        """Returns the CLM share; `linear` is FuseLLM's hard_and_decay."""
        share = self._config.clm_weight
        if self._config.clm_schedule == "constant":
            return share
        return share + (1 - share) * self.state.global_step / self.args.max_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Writes one line of metrics and reports it.

        Raises:
          ValueError: if the loss is no number.
        """
        if "loss" not in logs:  # the Trainer's closing summary
            return
        sums = self._sums
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, "mean")
        self._sums = torch.zeros_like(sums)
        line: Line = {
            "step": self.state.global_step,
            "tokens": self.state.num_input_tokens_seen,
            "tokens_per_s": round(self._speed(), 1),
            "train/loss": logs["loss"],
            "train/clm_nats": float(sums[0] / sums[2].clamp_min(1)),
            "train/fusion_nats": float(sums[1] / sums[3].clamp_min(1)),
            "train/clm_weight": self._share,
            "train/learning_rate": logs["learning_rate"],
            "train/gradient_norm": float(logs.get("grad_norm", 0.0)),
        }
        if not math.isfinite(logs["loss"]):
            raise ValueError(
                f"the loss must be finite, it is {logs['loss']} at step"
                f" {self.state.global_step}; lower --learning_rate, or use --dtype"
                " float32"
            )
        if self.is_world_process_zero():
            with (self._work / checkpoints.METRICS).open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._report(self._spell(line))
        self.last_line = line
        super().log({name.removeprefix("train/"): v for name, v in line.items()})

    def _speed(self) -> float:
        """Returns tokens per second since the last line."""
        tokens, then = self._last
        now = self.state.num_input_tokens_seen, time.monotonic()
        self._last = now
        return (now[0] - tokens) / max(now[1] - then, 1e-9)

    def _spell(self, line: Line) -> str:
        done, total = self.state.global_step, self.args.max_steps
        step, then = self._begun
        left = (time.monotonic() - then) / max(done - step, 1) * (total - done)
        minutes, seconds = divmod(round(left), 60)
        return (
            f"step {done}/{total}  loss {line['train/loss']:.4f}"
            f"  clm {line['train/clm_nats']:.4f}"
            f"  fusion {line['train/fusion_nats']:.4f} nats"
            f"  {line['tokens_per_s']:,.0f} tokens/s"
            f"  ETA {minutes // 60}:{minutes % 60:02}:{seconds:02}"
        )

    def run(self, resume: pathlib.Path | None) -> None:
        """Trains to the end, from a checkpoint or from the beginning."""
        self._start = checkpoints.step_of(resume) if resume else 0
        self._begun = (self._start, time.monotonic())
        self._last = (self._tokens_at(resume), time.monotonic())
        self.train(resume_from_checkpoint=str(resume) if resume else None)

    @staticmethod
    def _tokens_at(resume: pathlib.Path | None) -> int:
        if resume is None:
            return 0
        state = transformers.TrainerState.load_from_json(
            str(resume / "trainer_state.json")
        )
        return int(state.num_input_tokens_seen)
