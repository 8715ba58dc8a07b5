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
from accelerate.utils import gather_object
from torch import Tensor

from train import (
    adapters,
    checkpoints,
    evaluate,
    heldout,
    interleave,
    metrics,
    offload,
    processes,
    rows,
    skipped,
    states,
)
from train import model as models
from train.callbacks import StepEnds
from train.config import TrainConfig
from train.data import Collator
from train.evaluate import Domains
from train.heldout import HeldOut, Standing
from train.metrics import Line
from train.mixture import Mixture
from train.order import StepBatches
from train.saving import SavingTrainer

Report = Callable[[str], None]
"""Is given one line for people, now and then."""

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
        warmup_steps=math.ceil(interleave.exact([config.warmup_ratio])[0] * steps),
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


class FusionTrainer(SavingTrainer):
    """Trains a model that `model.give_objective` has given its loss.

    The run is one epoch of `steps` full steps to the Trainer, whatever passes over the
    data they make.
    """

    # The loss is a sum over a micro-batch, divided by the counts of the whole step.
    loss_is_scaled_for_ga = True

    control: transformers.TrainerControl

    def __init__(
        self,
        config: TrainConfig,
        model: Any,
        args: transformers.TrainingArguments,
        dataset: Mixture,
        collate: Collator,
        *,
        work: pathlib.Path,
        report: Report,
        held_out: HeldOut | None = None,
    ) -> None:
        # Several devices of one process would split what is one number a batch.
        args._n_gpu = min(1, args.n_gpu)
        parts = config.accumulation * args.world_size
        args.per_device_train_batch_size = max(1, config.batch_size // parts)
        super().__init__(
            model=model, args=args, train_dataset=dataset, data_collator=collate
        )
        self.remove_callback(transformers.PrinterCallback)
        every = None if held_out is None else config.eval_steps or args.max_steps
        self.add_callback(StepEnds(every, self._begin))
        processes.settle(self.accelerator, dtype="bfloat16" if args.bf16 else "float32")
        self.sharded = config.checkpoint_form == "sharded" and config.lora_rank is None
        self.loss_is_scaled_for_ga = True
        self._config, self._work, self._report = config, work, report
        self._meter = metrics.Meter(
            dataset.sources, metrics.work_of(model), self._peak()
        )
        self._start = 0
        self._begun = 0.0  # seconds
        self._held_out, self._standing = held_out, Standing()
        self._share = config.clm_weight  # of the last step done
        self.last_line: Line = {}

    def get_train_dataloader(self) -> Any:
        """Returns this process's batches that are still to do, in `order`'s order."""
        config, args, data = self._config, self.args, self.train_dataset
        batches = StepBatches(
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
        sums = (
            torch.stack([metrics.counts_of(batch) for batch in batches])
            .sum(0)
            .to(device)
        )
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, "sum")
        _, _, _, _, tokens, attended, blank, *sources = sums.tolist()
        self._meter.add_counts(tokens, attended, sources)
        self.state.num_input_tokens_seen += int(tokens)
        skipped.count(
            self.state,
            int(blank),
            rows=self.args.max_steps * self._config.batch_size,
            most=self._config.max_bad_fraction,
        )
        return batches, sums[:4].float()

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
        clm_count, fusion_count, chunk_count = self._means(inputs, num_items_in_batch)
        self._share = self._clm_weight()
        with self._kept_activations():
            losses = model(
                **inputs,
                clm_weight=self._share,
                clm_count=clm_count,
                fusion_count=fusion_count,
                chunk_count=chunk_count,
            )
        share = num_items_in_batch / self.current_gradient_accumulation_steps
        self._meter.add_losses(losses, share, processes=self.args.world_size)
        # Gradients are averaged over processes, and this is a part of a sum.
        return losses["loss"] * self.args.world_size

    def _means(self, inputs: dict[str, Tensor], counts: Tensor) -> Tensor:
        """Returns what the means of a micro-batch's losses are over.

        The whole step, of which the micro-batch is a part. The authors' code averages
        over each micro-batch, and then over these.
        """
        if self._config.reference is None:
            return counts[:3]
        parts = self.current_gradient_accumulation_steps * self.args.world_size
        return rows.count(inputs) * parts

    def _kept_activations(self) -> contextlib.AbstractContextManager[object]:
        if self._config.activation_offload:
            return offload.activations()
        return contextlib.nullcontext()

    def _clm_weight(self) -> float:
        """Returns the CLM share; `linear` is FuseLLM's hard_and_decay."""
        share, schedule = self._config.clm_weight, self._config.clm_schedule
        done = self.state.global_step / self.args.max_steps
        if schedule == "constant":
            return share
        if schedule == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return share + (1 - share) * done

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Writes one line of metrics and reports it.

        Raises:
          ValueError: if the loss is no number.
        """
        if "loss" not in logs:  # the Trainer's closing summary
            return
        line: Line = {
            "step": self.state.global_step,
            "train/epoch": self._passes(),
            "train/tokens": self.state.num_input_tokens_seen,
            "train/loss": logs["loss"],
            "train/clm_weight": self._share,
            "train/learning_rate": logs["learning_rate"],
            "train/gradient_norm": float(logs.get("grad_norm", 0.0)),
            **self._meter.take(self._mean),
        }
        if self._config.bad_rows == "skip":
            line["train/skipped_rows"] = skipped.counted(self.state)
        if not math.isfinite(logs["loss"]):
            raise ValueError(
                f"the loss must be finite, it is {logs['loss']} at step"
                f" {self.state.global_step}; lower --learning_rate, or use --dtype"
                " float32"
            )
        self._write(line, self._spell(line))

    def _write(self, line: Line, spelt: str) -> None:
        """Gives a line to metrics.jsonl, to the trackers and to people."""
        if self.is_world_process_zero():
            with (self._work / checkpoints.METRICS).open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._report(spelt)
        self.last_line = self.last_line | line
        self.state.epoch = line["train/epoch"]
        super().log(metrics.spell(line))

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measures the weights as they are; says whether to save them, or to stop."""
        began = time.monotonic()
        with self._meter.paused():
            bits = evaluate.bits_per_byte(self._measure())
        line: Line = {
            "step": self.state.global_step,
            "train/epoch": self._passes(),
            **{f"eval/bits_per_byte/{name}": value for name, value in bits.items()},
            "eval/seconds": round(time.monotonic() - began, 1),
        }
        told = "  ".join(f"{name} {value:.4f}" for name, value in bits.items())
        step = f"step {self.state.global_step}/{self.args.max_steps}"
        self._write(line, f"{step}  held out, bits per byte: {told}")
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics={}
        )
        if self.state.global_step:
            self._judge(bits[evaluate.ALL])
        return {}

    def _measure(self) -> Domains:
        """Measures the held-out text with all processes."""
        assert self._held_out is not None, "evaluations are asked for where it is given"
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return self._held_out.measure_sharded(self.model_wrapped)
        share = self.args.process_index, self.args.world_size
        return heldout.joined(
            gather_object([self._held_out.measure(self.model, share)])
        )

    def _judge(self, bits: float) -> None:
        config, step = self._config, self.state.global_step
        self._standing = self._standing.after(step, bits, config.min_delta)
        if config.keep_best and self._standing.best_step == step:
            self.control.should_save = True
        if self._out_of_patience():
            self.control.should_training_stop = True

    def _out_of_patience(self) -> bool:
        patience = self._config.patience
        return patience is not None and self._standing.bad >= patience

    @property
    def published_step(self) -> int:
        """The optimizer step that the weights to publish are of."""
        best = self._standing.best_step if self._config.keep_best else None
        return self.state.global_step if best is None else best

    def weights(self) -> dict[str, Tensor]:
        """Returns the weights to publish, on the first process; all must call it."""
        if self.published_step == self.state.global_step:
            return self.whole_weights()
        best = checkpoints.of_step(self._work, self.published_step)
        if self.sharded:
            states.load_weights(best, self.model)
            return self.whole_weights()
        if self._config.lora_rank is not None:
            return adapters.stored(best)
        if not self.is_world_process_zero():
            return {}
        return dict(models.load(best).state_dict())

    def _passes(self) -> float:
        """Returns how often the data was gone through."""
        return (
            self.state.global_step * self._config.batch_size / len(self.train_dataset)
        )

    def _mean(self, values: Tensor) -> Tensor:
        """Averages over processes."""
        if self.args.world_size == 1:
            return values
        mean: Tensor = self.accelerator.reduce(values, "mean")
        return mean

    def _peak(self) -> float:
        """Returns the operations per second that all devices are capable of."""
        if self._config.peak_tflops is not None:
            return self._config.peak_tflops * 1e12 * self.args.world_size
        dtype = torch.bfloat16 if self.args.bf16 else torch.float32
        device, threads = str(self.args.device), torch.get_num_threads()
        return metrics.measured_peak(device, dtype, threads) * self.args.world_size

    def _spell(self, line: Line) -> str:
        done, total = self.state.global_step, self.args.max_steps
        passed = time.monotonic() - self._begun
        left = passed / max(done - self._start, 1) * (total - done)
        minutes, seconds = divmod(round(left), 60)
        return (
            f"step {done}/{total}  loss {line['train/loss']:.4f}"
            f"  clm {line['train/clm_nats']:.4f}"
            f"  fusion {line['train/fusion_nats']:.4f} nats"
            f"  agree {line['train/agreement']:.0%}"
            f"  {line['train/tokens_per_s']:,.0f} tokens/s"
            f"  MFU {line['train/mfu']:.0%}"
            f"  ETA {minutes // 60}:{minutes % 60:02}:{seconds:02}"
        )

    def run(self, resume: pathlib.Path | None) -> None:
        """Trains to the end, from a checkpoint or from the beginning."""
        self._start = checkpoints.step_of(resume) if resume else 0
        self._standing = heldout.read(resume)
        if self._out_of_patience():  # it had stopped, and was killed after that
            self.args.max_steps = self._start
        try:
            self.train(resume_from_checkpoint=str(resume) if resume else None)
        finally:
            self.train_dataset.close()

    def _begin(self) -> None:
        """Looks at the clock, and at the target as it came: nothing is trained yet."""
        self._begun = time.monotonic()
        self._meter.start()
        if self._held_out is not None and self.state.global_step == 0:
            self.evaluate()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self._held_out is not None:
            folder = pathlib.Path(output_dir)
            heldout.write(folder, self._standing, keep=self._config.keep_best)
