"""fusebeam prepare: cut a corpus into windows that fit every model.

Writes one windows folder for each split: OUTPUT/SPLIT.
"""

import dataclasses
import functools
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import apache_beam as beam

from pipelines import chats, guards, launch, left_out, slicing, stage, tally
from pipelines.watchdog import Watch
from schemas import (
    corpora,
    documents,
    files,
    manifest,
    plan,
    settings,
    windows,
)
from schemas.manifest import Manifest
from schemas.settings import setting
from transforms import ledger, lines, prepare, tokenizer
from transforms.attempts import Guards
from transforms.chat import Chat
from transforms.functional import splits
from transforms.prepare import Cut, DoUnits, Unit

UNITS = "units.jsonl"
PROTECTED = ("dev", "heldout", "test", "validation")
"""Splits whose near-duplicates leave the others unless others are named."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Settings of `fusebeam prepare`."""

    inputs: tuple[str, ...] = setting(
        help="corpus files, folders or globs: .jsonl, .jsonl.gz, .jsonl.zst, .parquet,"
        " .txt; local, gs:// or s3://",
        shapes_output=False,
    )
    output: str = setting(
        help="folder that gets a windows folder for each split", shapes_output=False
    )
    models: tuple[str, ...] = setting(
        (),
        help="models whose tokenizers every window must fit: folders, .gguf or hub ids",
        shapes_output=False,
    )
    text_field: str = setting("text", help="field of a record that holds its text")
    id_field: str | None = setting(
        None, help="field that holds its id; left out: file name and row"
    )
    domain_field: str | None = setting(
        None, help="field that labels it, for tables by domain"
    )
    split_field: str | None = setting(
        None, help="field that names a record's split; left out: by hash of its text"
    )
    chat_shape: Literal["auto", "messages", "conversations", "pairs"] | None = (
        chats.chat_shape()
    )
    chat_field: str | None = chats.chat_field()
    prompt_field: str | None = chats.prompt_field()
    answer_field: str | None = chats.answer_field()
    input_field: str | None = chats.input_field()
    system_field: str | None = chats.system_field()
    chat_template: str | None = chats.chat_template()
    chat_model: str | None = chats.chat_model()
    chat_date: str | None = chats.chat_date()
    splits: str = setting(
        "train=1",
        help="named shares of the documents, e.g. fusion=.8,dev=.1,heldout=.1; with"
        " --split_field the names alone",
    )
    protected: tuple[str, ...] | None = setting(
        None,
        help="splits whose near-duplicates leave the others; left out: those of"
        f" {', '.join(PROTECTED)} that there are",
    )
    max_tokens: int = setting(
        1024, help="tokens of a window at most, start token and EOS included"
    )
    max_bytes: int | None = setting(None, help="bytes of a window at most")
    group_windows: int = setting(256, help="windows of a row group")
    slice_bytes: int = setting(
        8 << 20, help="bytes of text of a slice, the unit of work of what follows"
    )
    max_reject_fraction: float = setting(
        0.0,
        help="share of the documents that may be rejected, in [0, 1]",
        shapes_output=False,
    )
    stall_timeout: float = guards.stall_timeout()
    max_slice_attempts: int = guards.max_slice_attempts()
    element_timeout: float | None = guards.element_timeout()
    overwrite: bool = setting(
        False, help="write anew what other settings have written", shapes_output=False
    )

    def __post_init__(self) -> None:
        """Checks what can be checked without reading a file."""
        if not self.inputs:
            raise ValueError("inputs must name at least one file")
        for name in ("max_tokens", "group_windows", "slice_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.max_bytes is not None and self.max_bytes < 4:
            raise ValueError(
                f"max_bytes must be at least 4, a character's, got {self.max_bytes}"
            )
        if not self.models and self.max_bytes is None:
            raise ValueError("models or max_bytes must be given, to say what fits")
        if not 0 <= self.max_reject_fraction <= 1:
            raise ValueError(
                f"max_reject_fraction must be in [0, 1], got {self.max_reject_fraction}"
            )
        self.protected_splits()
        chats.check(self)
        guards.of(self)

    def shares(self) -> dict[str, float]:
        """Returns the share of each split; equal ones where records name theirs."""
        if self.split_field is None:
            return splits.parse_splits(self.splits)
        if "=" in self.splits:
            raise ValueError(
                "splits must be names alone where split_field names the field that"
                f" holds them, e.g. --splits=train,dev,heldout, got {self.splits!r}"
            )
        names = self.splits.split(",")
        return splits.parse_splits(",".join(f"{n}={1 / len(names)}" for n in names))

    def protected_splits(self) -> tuple[str, ...]:
        """Returns the splits whose near-duplicates leave the others."""
        named = self.shares()
        if self.protected is None:
            return tuple(name for name in PROTECTED if name in named)
        for name in self.protected:
            if name not in named:
                raise ValueError(
                    f"protected must name splits, which are {', '.join(named)}, got"
                    f" {name!r}{settings.suggestion(name, named)}"
                )
        return self.protected


def units_of(config: PrepareConfig) -> list[Unit]:
    """Lists the input files, sorted; labels tell files of one name apart."""
    paths = corpora.expand(config.inputs)
    for path in paths:
        documents.check_suffix(path)
    twice = Counter(map(files.name_of, paths))
    return [
        Unit(
            index=index,
            path=path,
            label=files.name_of(path)
            if twice[files.name_of(path)] == 1
            else f"{index}/{files.name_of(path)}",
        )
        for index, path in enumerate(paths)
    ]


def inputs_of(config: PrepareConfig, units: Sequence[Unit]) -> dict[str, Any]:
    """Returns the fingerprints of what the windows are made from."""
    chat = chats.chat_of(config)
    return {
        "corpus": corpus_digest(units),
        "tokenizers": [tokenizer.load(name).fingerprint for name in config.models],
        **({} if chat is None else {"template": _template_digest(chat, config.models)}),
    }


def _template_digest(chat: Chat, models: Sequence[str]) -> str:
    """Digests a template and the spellings that pass for control tokens in it.

    These are the tokenizer's of the template's model, which is among the tokenizers'
    digests already where windows must fit that model too.
    """
    if chat.model in models:
        return chat.template.fingerprint
    owner = tokenizer.load(chat.model).fingerprint
    return files.digest([chat.template.fingerprint, owner])


def corpus_digest(units: Sequence[Unit]) -> str:
    """Digests the content of the input files, and what document ids call them."""
    told = corpora.identities([unit.path for unit in units])
    labels = [unit.label for unit in units]
    return files.digest(list(zip(labels, told, strict=True)))


def cut_of(
    config: PrepareConfig, inputs: Mapping[str, Any], units: Sequence[Unit]
) -> Cut:
    """Returns how the corpus is to be cut."""
    return Cut(
        output=config.output,
        fields=chats.fields_of(config),
        splits=config.shares(),
        protected=config.protected_splits(),
        tokenizers=config.models,
        max_tokens=config.max_tokens,
        max_bytes=config.max_bytes,
        group_windows=config.group_windows,
        units=len(units),
        fingerprint=stage.identity(windows.STAGE, _shaping(config), inputs),
        overwrite=config.overwrite,
        identities={
            split: stage.identity(windows.STAGE, _settings(config, split), inputs)
            for split in config.shares()
        },
        chat=chats.chat_of(config),
    )


def prepare_corpus(
    config: PrepareConfig, runner_flags: Sequence[str] = ()
) -> dict[str, Manifest]:
    """Cuts a corpus, and describes each split once all of its files are there.

    Returns:
      The manifest of each split's windows folder; none where nobody awaits the job.

    Raises:
      FusionError: if more documents were rejected than `max_reject_fraction` allows;
        names the reasons and where the rejects are listed.
    """
    launch.check(config.output, runner_flags)
    dry = launch.is_dry(runner_flags)
    units = units_of(config)
    inputs = inputs_of(config, units)
    cut = cut_of(config, inputs, units)
    folders = {split: cut.folder(split) for split in cut.splits}
    # A list, for each split is looked at: what is not whole must lose its manifest.
    whole = [_whole(config, at, split, inputs, dry) for split, at in folders.items()]
    if all(whole):
        return {s: manifest.read(f, windows.STAGE) for s, f in folders.items()}
    listed = files.join(config.output, UNITS)
    if not dry:  # the job names the list, and its workers read it
        text = "".join(u.to_line(cut.fingerprint) + "\n" for u in units)
        files.write_bytes(listed, text.encode())
    describe = functools.partial(_describe, config, inputs)
    guarded = guards.of(config)
    prints = {unit.part: cut.unit_fingerprint(unit) for unit in units}
    done = tally.Tally(list(folders.values())[-1], prints, tally.in_parquet)
    places = (*folders.values(), files.join(config.output, prepare.INDEX))
    with launch.Progress("prepare", len(units), done):
        launch.run(
            lambda root: stage.ending(
                _cut_all(root, listed, cut, guarded), describe, runner_flags
            ),
            runner_flags,
            Watch("prepare", places, config.output, guarded.stall_timeout),
            reads=[*(unit.path for unit in units), *config.models, *_chat_model(cut)],
        )
    return {} if launch.left_alone(runner_flags) else describe()


def _chat_model(cut: Cut) -> list[str]:
    """Names the model whose chat template is used, and whose tokenizer tells more."""
    return [] if cut.chat is None else [cut.chat.model]


def _cut_all(
    root: beam.Pipeline, listed: str, cut: Cut, guarded: Guards
) -> beam.PCollection[str]:
    """Cuts every unit; where a split is protected, once all of it is indexed."""
    units = root | "List units" >> lines.ReadLines(listed)
    if cut.protected and len(cut.protected) < len(cut.splits):
        parts = units | "Index" >> DoUnits(cut, "index", guarded)
        units = parts | "Then" >> lines.AwaitLines(listed)
    return units | "Cut" >> DoUnits(cut, "cut", guarded)


def _describe(config: PrepareConfig, inputs: Mapping[str, Any]) -> dict[str, Manifest]:
    """Writes plan and manifest of each split, whose files are all there."""
    cut = cut_of(config, inputs, ())
    listed = files.read_bytes(files.join(config.output, UNITS)).decode()
    units = [prepare.unit_of(cut, line) for line in listed.splitlines()]
    rejects = left_out.count(cut, units, config.inputs, config.max_reject_fraction)
    for place, names in (
        (prepare.REJECTS, {unit.rejects for unit in units}),
        (prepare.INDEX, {unit.part for unit in units}),
    ):
        stage.remove_others(files.join(config.output, place), names)
    made = {
        split: _finish(
            config, files.join(config.output, split), split, units, inputs, rejects
        )
        for split in config.shares()
    }
    ledger.forget(config.output)
    files.tidy(config.output)
    return made


def _shaping(config: PrepareConfig) -> dict[str, Any]:
    """Returns the settings that shape the windows, defaults made definite."""
    chat = chats.chat_of(config)
    return {
        **settings.shaping(config),
        "protected": list(config.protected_splits()),
        **({} if chat is None else {"chat_template": chat.template.text}),
    }


def _settings(config: PrepareConfig, split: str) -> dict[str, Any]:
    return {**_shaping(config), "split": split}


def _whole(
    config: PrepareConfig, folder: str, split: str, inputs: Mapping[str, Any], dry: bool
) -> bool:
    return stage.whole(
        folder,
        windows.STAGE,
        _settings(config, split),
        inputs,
        overwrite=config.overwrite,
        dry=dry,
    )


def _finish(
    config: PrepareConfig,
    folder: str,
    split: str,
    units: Sequence[Unit],
    inputs: Mapping[str, Any],
    rejects: Counter[str],
) -> Manifest:
    """Writes the plan and the manifest of one split."""
    names = [unit.part for unit in units]
    plan.write(folder, slicing.plan_slices(folder, names, config.slice_bytes))
    lost = {f"left_out_{reason}": n for reason, n in sorted(rejects.items())}
    return stage.finish(
        folder,
        windows.STAGE,
        settings=_settings(config, split),
        inputs=inputs,
        origins=_origins(config),
        names=names,
        count=lambda footers: {
            **stage.total(footers, "documents", "windows", "text_bytes"),
            **lost,
        },
    )


def _origins(config: PrepareConfig) -> dict[str, Any]:
    chat = chats.chat_of(config)
    return {
        "corpus": list(config.inputs),
        "tokenizers": list(config.models),
        **({} if chat is None else {"template": [chat.model]}),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    config, runner_flags = launch.parse(
        PrepareConfig,
        sys.argv[1:] if argv is None else argv,
        prog="fusebeam prepare",
        description=__doc__ or "",
    )
    finished = prepare_corpus(config, runner_flags)
    for split, made in finished.items():
        counts = made.counts
        slices = len(plan.read(files.join(config.output, split)))
        print(
            f"{config.output}/{split}: {counts['documents']:,} documents,"
            f" {counts['windows']:,} windows, {counts['text_bytes']:,} bytes,"
            f" {slices:,} slices"
        )
    if not finished:
        print(launch.parting_words(runner_flags))
    return 0


if __name__ == "__main__":
    sys.exit(main())
