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
from typing import Any

import torch
import transformers
from accelerate import PartialState

from schemas import locks, manifest
from train import (
    adapters,
    arguments,
    checkpoints,
    disk,
    faults,
    gradient,
    hub,
    interleave,
    processes,
    publish,
    results,
    runs,
    skipped,
    states,
)
from train import model as models
from train.config import TrainConfig
from train.data import Collator
from train.loop import FusionTrainer
from train.metrics import Line
from train.objective import Objective
from train.runs import Report, Run
from transforms import allocator, causal


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


def train(config: TrainConfig, progress: Report | None = None) -> TrainResult:
    """Trains, resumes, or finds the run finished.

    Args:
      config: what to do.
      progress: is given one line a logged step; standard error if None.

    Raises:
      SchemaError: if data, model and output do not fit each other.
      FileNotFoundError: if there is no such model.
      ValueError: if the loss is no number.
      ConnectionError: if the hub does not take the model, which is published by then.
    """
    if not config.keep_malloc and runs.resolved(config)["device"] == "cpu":
        allocator.keep_large_blocks()
    with runs.threads(config.threads), causal.quiet(), processes.clean_environment():
        run = runs.resolve(config, progress or _print_line)
        args = arguments.training(  # where several processes meet
            config,
            run.work,
            steps=_steps(config, len(run.dataset)),
            device=run.settings["device"],
            dtype=run.settings["dtype"],
        )
        # Where processes meet on CPUs, accelerate takes as many as there are cores.
        torch.set_num_threads(run.settings["threads"] or torch.get_num_threads())
        if _finished(run, first=args.process_index == 0):
            _push(config, run.report)
            return _skipped(config)
        with faults.shared():
            processes.check(config, args.world_size)
            runs.check_tokenizer(run)
            runs.check_trackers(config)
            if config.kernels:
                gradient.require_kernels(torch.device(run.settings["device"]))
        with contextlib.ExitStack() as held:
            result = _finish(run, args, held)
        _push(config, run.report)
    gc.collect()  # the Trainer and its model refer to each other
    return result


def identity(config: TrainConfig) -> dict[str, Any]:
    """Returns all that decides the final weights, flat: settings and inputs.

    A finished output whose manifest says the same is of this very run, whatever it is
    called.

    Raises:
      SchemaError: if the data are not whole.
      FileNotFoundError: if there is no such model.
    """
    with runs.threads(config.threads), causal.quiet():
        return runs.resolve(config, _print_line).identity


def _finished(run: Run, *, first: bool) -> bool:
    """Says whether the run is done, in the words of the first process."""
    config, done = run.config, False
    with faults.shared():
        if first:
            done = publish.finished(
                config.output, run.identity, overwrite=config.overwrite
            )
        for folder in run.folders if done else ():
            checkpoints.discard_left(folder)
    [done] = processes.tell(done)
    return bool(done)


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _skipped(config: TrainConfig) -> TrainResult:
    counts = manifest.read(config.output, publish.STAGE).counts
    return TrainResult(
        output=config.output,
        skipped=True,
        steps=counts["steps"],
        tokens=counts["tokens"],
        metrics={},
    )


def _push(config: TrainConfig, report: Report) -> None:
    """Sends the published model to the hub, where the settings say so."""
    if config.push_to_hub is None or not PartialState().is_main_process:
        return
    if hub.push(config.output, config.push_to_hub, public=config.hub_public):
        report(f"sent to {config.push_to_hub} on the hub")


def _steps(config: TrainConfig, rows: int) -> int:
    """Counts the optimizer steps; the last one is full, too."""
    [epochs] = interleave.exact([config.epochs])
    return config.max_steps or math.ceil(epochs * rows / config.batch_size)


def _finish(
    run: Run, args: transformers.TrainingArguments, held: contextlib.ExitStack
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
    traits = None
    with faults.shared():
        with processes.loading(config):
            target = _target(run, resume)
            if first:  # it has the weights, whatever the others have
                traits = models.probe_exactly(target, run.source)
        held_out = runs.held_out(run)
    [traits] = processes.tell(traits)
    objective = _objective(config)
    models.give_objective(target, traits, objective, kernels=config.kernels)
    collate = Collator(
        keep_packed=traits.keeps_segments,
        vocabulary=models.vocabulary(target),
        across=config.attend_across,
        weighing=config.reference or config.position_weights,
        chunks=objective.matches_chunks,
    )
    trainer = FusionTrainer(
        config,
        target,
        args,
        run.dataset,
        collate,
        work=work,
        report=run.report,
        held_out=held_out,
    )
    with disk.told(work):
        trainer.run(resume)
    state, step = trainer.weights(), trainer.published_step
    # Nobody waits for the first any more: it may write for longer than others may wait.
    if first:
        with disk.told(run.made):
            _publish(run, trainer, target, state, step)
    return TrainResult(
        output=config.output,
        skipped=False,
        steps=trainer.state.global_step,
        tokens=int(trainer.state.num_input_tokens_seen),
        metrics=trainer.last_line,
    )


def _target(run: Run, resume: pathlib.Path | None) -> Any:
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
    run: Run, held: contextlib.ExitStack, *, first: bool
) -> tuple[bool, pathlib.Path | None]:
    """Takes the work folder on the first process; tells all where the run stands.

    Returns:
      Whether the run is done, and else the checkpoint that it goes on from, if any.
    """
    done, resume = False, None
    with faults.shared():  # the others wait for it
        if first:
            done, resume = _enter(run, held)
    done, resume = processes.tell(done, resume)
    return done, resume


def _enter(run: Run, held: contextlib.ExitStack) -> tuple[bool, pathlib.Path | None]:
    """Does what `_begin` says, on the first process."""
    config = run.config
    for folder in run.folders:
        held.enter_context(locks.hold(folder, "training"))
    if publish.finished(config.output, run.identity, overwrite=config.overwrite):
        for folder in run.folders:
            checkpoints.discard(folder)
        return True, None
    checkpoints.open_work(run.work, run.identity, anew=config.overwrite)
    resume = checkpoints.latest(run.work)
    checkpoints.rewind_metrics(run.work, resume)
    return False, resume


def _objective(config: TrainConfig) -> Objective:
    return Objective(
        clm_weight=config.clm_weight,
        fusion_loss=config.fusion_loss,
        tail=config.tail,
        label_smoothing=config.label_smoothing,
        teacher_temperature=config.teacher_temperature,
        target_temperature=config.target_temperature,
        chunk_share=config.chunk_share,
        chunk_temperature=config.chunk_temperature,
        authors=config.reference is not None,
    )


def _publish(
    run: Run,
    trainer: FusionTrainer,
    target: Any,
    state: dict[str, torch.Tensor],
    step: int,
) -> None:
    """Makes the model, gives it its final name, and tidies up."""
    folder, adapter = run.made / checkpoints.MODEL, run.made / checkpoints.ADAPTER
    if run.config.lora_rank is not None:
        adapters.write(target, state, adapter)
        with processes.loading(run.config):
            target = adapters.merged(run.source, adapter)
        state = target.state_dict()
    target.config.use_cache = models.uses_cache(run.source)
    publish.write_model(folder, target, state, source=run.source)
    if run.config.keep_adapter:
        shutil.move(adapter, folder / adapters.FOLDER)
    _describe(run, trainer, folder, step)
    publish.publish(folder, run.config.output)
    for left in run.folders:
        checkpoints.discard(left)


def _describe(
    run: Run, trainer: FusionTrainer, folder: pathlib.Path, step: int
) -> None:
    shutil.copyfile(run.work / checkpoints.METRICS, folder / checkpoints.METRICS)
    for logs in (run.work / "checkpoints").glob("runs"):  # TensorBoard's
        shutil.copytree(logs, folder / "runs")
    bad = {"skipped_rows": skipped.counted(trainer.state)}
    publish.describe(
        folder,
        settings=run.settings,
        inputs=run.inputs,
        origins={
            "model": publish.spoken_name(run.config.model),
            **publish.by_folder(run.config.folders),
        },
        counts={
            "steps": trainer.state.global_step,
            "tokens": int(trainer.state.num_input_tokens_seen),
            "rows": trainer.state.global_step * run.config.batch_size,
            **({"best_step": step} if run.config.keep_best else {}),
            **(bad if run.config.bad_rows == "skip" else {}),
        },
        results=results.read(folder / checkpoints.METRICS, step),
        data=[folder.manifest for folder in run.dataset.folders],
    )
