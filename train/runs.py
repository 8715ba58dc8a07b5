"""A run before it begins: its settings resolved, its inputs found and checked."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import integrations

from schemas import manifest, settings, windows
from schemas.errors import SchemaError
from train import interleave, order, publish
from train import model as models
from train.config import TrainConfig
from train.heldout import HeldOut
from train.mixture import Mixture
from train.shards import FusedFolder
from transforms import scorer, tokenizer
from transforms.scorer import ScorerSettings

Report = Callable[[str], None]
"""Is given one line for people, now and then."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
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
    dataset: Mixture
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


def resolved(config: TrainConfig) -> dict[str, Any]:
    """Returns device, dtype and threads, made definite for this machine."""
    asked = ScorerSettings(
        model=config.model,
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
    )
    return scorer.resolved(asked)


def resolve(config: TrainConfig, report: Report) -> Run:
    """Finds what a run starts from, and makes definite what was left to us.

    Raises:
      SchemaError: if the data are not whole.
      FileNotFoundError: if there is no such model.
    """
    source = models.folder_of(config.model)
    dataset = Mixture(
        [FusedFolder(folder) for folder in config.folders],
        seed=config.seed,
        weights=interleave.exact(config.data_weights),
        read_ahead=config.read_ahead,
        skip_bad=config.bad_rows == "skip",
    )
    beside = publish.beside(config.output)
    work = pathlib.Path(config.checkpoints) if config.checkpoints else beside
    assert work is not None, "TrainConfig wants checkpoints where the output is remote"
    return Run(
        config=config,
        source=source,
        dataset=dataset,
        settings={
            **settings.shaping(config),
            **resolved(config),
            "order": order.VERSION,
            **({"eval_steps": config.eval_steps} if _chooses(config) else {}),
        },
        inputs={
            **publish.by_folder([f.fingerprint for f in dataset.folders]),
            "model": scorer.model_fingerprint(str(source)),
            **_judges(config),
        },
        work=work,
        made=beside or work,
        report=report,
    )


def _chooses(config: TrainConfig) -> bool:
    """Says whether evaluations decide which weights are published."""
    return config.keep_best or config.patience is not None


def _judges(config: TrainConfig) -> dict[str, str]:
    """Returns the fingerprint of the held-out text, where it shapes the weights."""
    if not _chooses(config):
        return {}
    assert config.eval_data is not None, "TrainConfig wants it"
    return {"eval_data": manifest.read(config.eval_data, windows.STAGE).fingerprint}


def held_out(run: Run) -> HeldOut | None:
    """Returns what a run is measured on, if it is."""
    if run.config.eval_data is None:
        return None
    manifest.read(run.config.eval_data, windows.STAGE)
    return HeldOut(
        folder=run.config.eval_data,
        tokenizer=tokenizer.load(str(run.source)),
        bfloat16=run.settings["dtype"] == "bfloat16",
    )


def check_trackers(config: TrainConfig) -> None:
    """Refuses trackers that are not installed, before anything takes its time."""
    found = {
        "tensorboard": integrations.is_tensorboard_available,
        "wandb": integrations.is_wandb_available,
    }
    for name in config.report_to:
        if name in found and not found[name]():
            raise ValueError(
                f"report_to must name trackers that are installed, {name} is not; run"
                " pip install 'fusebeam[track]'"
            )


def check_tokenizer(run: Run) -> None:
    """Refuses data that was fused for another tokenizer than the target's."""
    for folder in run.dataset.folders:
        wanted = folder.manifest.settings.get("target_tokenizer")
        found = tokenizer.load(str(run.source)).fingerprint if wanted else None
        if wanted != found:
            raise SchemaError(
                f"{folder.folder} must be fused for the tokenizer of"
                f" {run.config.model} (fingerprint {found}), but is for another"
                f" ({wanted}); fuse with the scores of this target"
            )


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Sets torch's threads for the length of a run."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
