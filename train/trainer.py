"""Continues the training of a target model on fused shards.

    python -m train --data=runs/demo/fused --model=models/target --output=runs/demo/out

A run that is killed at any instant goes on, when the same command is given again, from
its last whole checkpoint; on a CPU it ends with the very bytes of an undisturbed run.
A run that is finished is skipped.
"""

import contextlib
import dataclasses
import gc
import math
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from schemas import manifest, settings
from schemas.errors import SchemaError
from train import adapters, checkpoints, disk, loop, processes, publish, states
from train import model as models
from train.config import TrainConfig
from train.data import Collator, FusedDataset
from train.loop import FusionTrainer, Line, Report
from train.loss import Objective
from transforms import allocator, causal, scorer, tokenizer
from transforms.scorer import ScorerSettings


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run came to.

    Attributes:
      output: the model's folder.
      skipped: whether it was there already.
      steps: optimizer steps of the whole run.
      tokens: tokens trained on, over all passes.
      metrics: the last line of metrics.jsonl; empty if skipped.
    """

    output: str
    skipped: bool
    steps: int
    tokens: int
    metrics: Line


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """A run whose settings are resolved and whose inputs are found.

    Attributes:
      config: as it was given.
      source: local folder of the target.
      dataset: what it is trained on.
      settings: those that shape the weights, what was left to us made definite.
      inputs: fingerprints of what the run starts from.
      work: folder of all that is written on the way, but for the model.
      made: folder in which the model is made before it is published.
      report: is given one line a logged step.
    """

    config: TrainConfig
    source: pathlib.Path
    dataset: FusedDataset
    settings: dict[str, Any]
    inputs: dict[str, str]
    work: pathlib.Path
    made: pathlib.Path
    report: Report

    @property
    def folders(self) -> list[pathlib.Path]:
        """What no other command may be at work in, each once."""
        return [self.work, *([self.made] if self.made != self.work else [])]

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the final weights, flat."""
        return {**self.settings, **self.inputs}


def train(config: TrainConfig, progress: Report | None = None) -> TrainResult:
    """Trains, resumes, or finds the run finished.

    Args:
      config: what to do.
      progress: is given one line a logged step; standard error if None.

    Raises:
      SchemaError: if data, model and output do not fit each other.
      FileNotFoundError: if there is no such model.
      ValueError: if the loss is no number.
    """
    if not config.keep_malloc and _resolved(config)["device"] == "cpu":
        allocator.keep_large_blocks()
    with _threads(config.threads), causal.quiet(), processes.clean_environment():
        run = _resolve(config, progress or _print_line)
        args = loop.arguments(  # where several processes meet
            config,
            run.work,
            steps=_steps(config, len(run.dataset)),
            device=run.settings["device"],
            dtype=run.settings["dtype"],
        )
        if _finished(run, first=args.process_index == 0):
            return _skipped(config)
        processes.check(config, args.world_size)
        _check_tokenizer(run)
        with contextlib.ExitStack() as held:
            result = _finish(run, args, held)
    gc.collect()  # the Trainer and its model refer to each other
    return result


def _finished(run: _Run, *, first: bool) -> bool:
    """Says whether the run is done, in the words of the first process."""
    config, done = run.config, False
    if first:
        done = publish.finished(config.output, run.identity, overwrite=config.overwrite)
    if first and done:
        for folder in run.folders:
            checkpoints.discard_left(folder)
    [done] = processes.tell(done)
    return bool(done)


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _resolved(config: TrainConfig) -> dict[str, Any]:
    """Returns device, dtype and threads, made definite for this machine."""
    asked = ScorerSettings(
        model=config.model,
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
    )
    return scorer.resolved(asked)


def _resolve(config: TrainConfig, report: Report) -> _Run:
    source = models.folder_of(config.model)
    dataset = FusedDataset(config.data)
    beside = publish.beside(config.output)
    work = pathlib.Path(config.checkpoints) if config.checkpoints else beside
    assert work is not None, "TrainConfig wants checkpoints where the output is remote"
    return _Run(
        config=config,
        source=source,
        dataset=dataset,
        settings={
            **settings.shaping(config),
            **_resolved(config),
        },
        inputs={
            "data": dataset.fingerprint,
            "model": scorer.model_fingerprint(str(source)),
        },
        work=work,
        made=beside or work,
        report=report,
    )


def _skipped(config: TrainConfig) -> TrainResult:
    counts = manifest.read(config.output, publish.STAGE).counts
    return TrainResult(
        output=config.output,
        skipped=True,
        steps=counts["steps"],
        tokens=counts["tokens"],
        metrics={},
    )


def _check_tokenizer(run: _Run) -> None:
    """Refuses data that was fused for another tokenizer than the target's."""
    wanted = run.dataset.manifest.settings.get("target_tokenizer")
    found = tokenizer.load(str(run.source)).fingerprint if wanted else None
    if wanted != found:
        raise SchemaError(
            f"{run.config.data} must be fused for the tokenizer of {run.config.model}"
            f" (fingerprint {found}), but is for another ({wanted}); fuse with the"
            " scores of this target"
        )


def _steps(config: TrainConfig, rows: int) -> int:
    """Counts the optimizer steps; the last one is full, too."""
    return config.max_steps or math.ceil(config.epochs * rows / config.batch_size)


def _finish(
    run: _Run, args: transformers.TrainingArguments, held: contextlib.ExitStack
) -> TrainResult:
    """Trains from wherever the run stands to its end, and publishes the model.

    Args:
      run: what to do.
      args: the same in the words of transformers.
      held: is given the locks of the folders that the run works in.

    Returns:
      What it came to; skipped if another command finished the run before these locks
      could be had.
    """
    config, work = run.config, run.work
    first = args.process_index == 0
    with disk.told(work):
        done, resume = _begin(run, held, first=first)
    if done:
        return _skipped(config)
    with processes.loading(config):
        target = _target(run, resume)
    bare = target if config.lora_rank is None else target.get_base_model()
    # The first process has the weights, whatever the others have.
    [traits] = processes.tell(models.probe(bare) if first else None)
    models.give_objective(target, traits, _objective(config))
    width = target.get_input_embeddings().weight.shape[0]
    collate = Collator(keep_packed=traits.keeps_segments, vocabulary=width)
    trainer = FusionTrainer(
        config, target, args, run.dataset, collate, work=work, report=run.report
    )
    with disk.told(work):
        trainer.run(resume)
    state = trainer.whole_weights()
    # Nobody waits for the first any more: it may write for longer than others may wait.
    if first:
        with disk.told(run.made):
            _publish(run, trainer, target, state)
    return TrainResult(
        output=config.output,
        skipped=False,
        steps=trainer.state.global_step,
        tokens=int(trainer.state.num_input_tokens_seen),
        metrics=trainer.last_line,
    )


def _target(run: _Run, resume: pathlib.Path | None) -> Any:
    """Loads the model that is trained, as it stands."""
    if run.config.lora_rank is None:
        whole = resume is not None and not states.is_sharded(resume)
        return models.load(resume if resume is not None and whole else run.source)
    return adapters.load(
        run.source,
        run.config,
        dtype=run.settings["dtype"],
        device=run.settings["device"],
        resume=resume,
    )


def _begin(
    run: _Run, held: contextlib.ExitStack, *, first: bool
) -> tuple[bool, pathlib.Path | None]:
    """Takes the work folder on the first process; tells all where the run stands.

    Returns:
      Whether the run is done, and else the checkpoint that it goes on from, if any.
    """
    done, resume = False, None
    if first:
        for folder in run.folders:
            held.enter_context(checkpoints.hold(folder))
        config = run.config
        done = publish.finished(config.output, run.identity, overwrite=config.overwrite)
        if done:
            for folder in run.folders:
                checkpoints.discard(folder)
        else:
            checkpoints.open_work(run.work, run.identity, anew=config.overwrite)
            resume = checkpoints.latest(run.work)
            checkpoints.rewind_metrics(run.work, resume)
    done, resume = processes.tell(done, resume)  # the others wait for it
    return done, resume


def _objective(config: TrainConfig) -> Objective:
    return Objective(
        clm_weight=config.clm_weight,
        fusion_loss=config.fusion_loss,
        tail=config.tail,
        label_smoothing=config.label_smoothing,
    )


def _publish(
    run: _Run, trainer: FusionTrainer, target: Any, state: dict[str, torch.Tensor]
) -> None:
    """Makes the model, gives it its final name, and tidies up."""
    folder, adapter = run.made / checkpoints.MODEL, run.made / checkpoints.ADAPTER
    if run.config.lora_rank is not None:
        adapters.write(target, state, adapter)
        target = adapters.merged(run.source, adapter)
        state = target.state_dict()
    target.config.use_cache = models.uses_cache(run.source)
    publish.write_model(folder, target, state, source=run.source)
    if run.config.keep_adapter:
        shutil.move(adapter, folder / adapters.FOLDER)
    _describe(run, trainer, folder)
    publish.publish(folder, run.config.output)
    for left in run.folders:
        checkpoints.discard(left)


def _describe(run: _Run, trainer: FusionTrainer, folder: pathlib.Path) -> None:
    shutil.copyfile(run.work / checkpoints.METRICS, folder / checkpoints.METRICS)
    for logs in (run.work / "checkpoints").glob("runs"):  # TensorBoard's
        shutil.copytree(logs, folder / "runs")
    publish.describe(
        folder,
        settings=run.settings,
        inputs=run.inputs,
        origins={
            "model": publish.spoken_name(run.config.model),
            "data": run.config.data,
        },
        counts={
            "steps": trainer.state.global_step,
            "tokens": int(trainer.state.num_input_tokens_seen),
            "rows": trainer.state.global_step * run.config.batch_size,
        },
        data=run.dataset.manifest,
    )


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Sets torch's threads for the length of a run."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
