"""Measures the merges of a search: each is made in memory, and none is written."""

import dataclasses
import functools
from collections.abc import Mapping

from pipelines import asking
from pipelines.merging import Merging
from pipelines.searching import Searching
from schemas.errors import NotFiniteError, SchemaError
from train.merge.inputs import Input
from train.merge.match import Sources
from train.search import bench, objective, tasks
from train.search.bench import Bench
from train.search.kept import Kept
from train.search.objective import Split
from train.search.tasks import Task
from train.search.trials import Found
from transforms import causal, devices, templates
from transforms.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measuring:
    """Merges in memory, and measures what comes out.

    Attributes:
      given: what is searched.
      bench: the models, opened.
      tokenizer: of the lead.
      known: what was measured before, trials apart.
      asked: the tasks of each split, by name.
    """

    given: Searching
    bench: Bench
    tokenizer: Tokenizer
    known: Kept
    asked: Mapping[Split, Mapping[str, Task]]

    def trial(self, split: Split, merging: Merging) -> Found:
        """Measures a trial; it is dead where its weights or its logits are not finite.

        Raises:
          FusionError: if a model is not what it was, or memory does not hold it.
        """
        try:
            model = self.bench.model(merging.rules)
        except NotFiniteError as error:
            return objective.dead(str(error))
        return objective.measure(
            model,
            self.tokenizer,
            split,
            self.asked[split],
            self.given.objective,
            batch_tokens=self.given.config.batch_tokens,
            max_new_tokens=self.given.config.max_new_tokens,
        )

    def best(self, name: str, merging: Merging) -> Found:
        """Measures the best trial of an arm on the report, unless that was done."""
        split = self.given.report
        return self.known.get(f"report of {name}", lambda: self.trial(split, merging))

    def reference(self, name: str) -> dict[str, Found]:
        """Measures a model as it is on both splits, unless that was done.

        Raises:
          SchemaError: if it cannot be measured.
        """
        found = {}
        for kind, split in (
            ("search", self.given.search),
            ("report", self.given.report),
        ):
            own = functools.partial(self._sound, name, kind, split)
            found[kind] = self.known.get(f"{kind} of {name}", own)
        return found

    def _sound(self, name: str, kind: str, split: Split) -> Found:
        found = self.trial(split, self.given.take(name))
        if found.error:
            raise SchemaError(
                f"{name} must be a sound model before it is merged, but on the split of"
                f" {kind}: {found.error}"
            )
        return found


def ask(given: Searching, sources: Sources) -> dict[Split, dict[str, Task]]:
    """Reads the tasks of a search, by split and name, as the models are asked them.

    Args:
      given: what is searched.
      sources: the models; the lead's template renders prompts.

    Raises:
      SchemaError: if a line is no item, or asks for a program that may not run, or
        does not fit the models.
      ValueError: if prompts are to be rendered, and there is no such template.
    """
    config, lead = given.config, sources.models[sources.lead]
    found: dict[Split, dict[str, Task]] = {given.search: {}, given.report: {}}
    if not given.tasks:
        return found
    template = None
    if any(task.chat_prompts for task in given.tasks.values()):
        folder = lead.folder_with(templates.FILES)
        template = templates.read(folder, config.chat_template, date=config.chat_date)
    known = _tokenizer(lead)
    longest = causal.longest_told(bench.read_config(lead))
    for split in found:
        found[split] = asking.open_tasks(given.tasks, split, template)
        for name, task in found[split].items():
            path = split.tasks[name]
            tasks.refuse_misfits(path, task, known, longest, config.max_new_tokens)
    return found


def _tokenizer(lead: Input) -> Tokenizer:
    if (found := lead.tokenizer) is None:
        raise ValueError(
            f"{lead.name} ({lead.model}) must have a tokenizer, so that it can be"
            " measured, it has none"
        )
    return found


def open_models(
    given: Searching,
    sources: Sources,
    known: Kept,
    asked: Mapping[Split, Mapping[str, Task]],
) -> Measuring:
    """Opens the models of a search, and gets the device ready.

    Args:
      given: what is searched.
      sources: the models.
      known: what was measured before.
      asked: the tasks of each split, as `ask` reads them.

    Raises:
      ValueError: if the lead has no tokenizer, or the device is not there.
    """
    config, tokenizer = given.config, _tokenizer(sources.models[sources.lead])
    device = devices.prepare(
        causal.choose_device(config.device),
        share=config.share_device,
        threads=config.threads,
        tune_allocator=not config.keep_malloc,
    )
    opened = bench.open_bench(
        sources,
        stored=given.stored,
        seed=given.merge.seed,
        threads=given.merge.threads,
        dtype=causal.choose_dtype(config.dtype, device),
        device=device,
    )
    return Measuring(
        given=given,
        bench=opened,
        tokenizer=tokenizer,
        known=known,
        asked=asked,
    )
