"""`fusebeam score` against bare forward passes of the same model over the same tokens.

Scoring is all that the command does with a slice of a windows folder: reading,
tokenizing, batches, the model, top-k and log-sum-exp, records, Parquet, publishing. A
slice here is dozens of windows of mixed length. Two bare passes leave the logits where
they are, and read no token of padding: window after window, and in the scorer's own
batches, packed. Scoring is compared with the one that was faster over all slices, which
the row names. The ways take turns, another in front for each slice, with torch's
threads as they come. With SmolLM2 where its file is there (some minutes on two idle
cores), else with a small model of random weights. `sections` says where the time goes.
"""

import contextlib
import dataclasses
import pydoc_data.topics
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples import comparison
from schemas import files, parquet, scores, windows
from schemas.plan import Slice
from schemas.scores import Score
from schemas.windows import Window
from tests import tiny
from tests.bench import held, rows, smollm2
from tests.bench.passes import Passes
from tests.bench.spent import Spent
from transforms import encodings, logits, score, scorer, slices, tokenizer, transfers
from transforms.causal import Halves
from transforms.engine import Engine, Row
from transforms.functional import rounding
from transforms.score import ScoreSlices
from transforms.scorer import Scorer, ScorerSettings

MAX_TOKENS = 512
SLICES = 3
GROUPS = 3
GROUP_WINDOWS = 8
LAYERS = 8
"""Of the model that is made where SmolLM2 is not there."""
TOP_K = 10
COMPILES = shutil.which("g++") is not None
"""Whether torch can compile a model for the CPU."""
LARGEST = (16_384, 2048, 262_144)
"""Positions, width and vocabulary of which the memory of head and reduction is told."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """A model, a windows folder, and what scores it.

    Attributes:
      name: of the model.
      work: what `fusebeam score` does with a slice.
      slices: the slices that are measured.
    """

    name: str
    work: ScoreSlices
    slices: list[Slice]

    @property
    def ready(self) -> Scorer:
        """The loaded model."""
        return score.shared_scorer(
            self.work.settings, self.work.model, self.work.tokenizer
        )

    @property
    def engine(self) -> Engine:
        """What runs it."""
        found = self.ready.engine
        assert isinstance(found, Engine)
        return found

    def scores(self) -> list[Score]:
        """Reads the scores of all slices."""
        paths = [files.join(self.work.output, piece.output) for piece in self.slices]
        found = [one for path in paths for group in scores.read(path) for one in group]
        assert all(one.error is None for one in found)
        return found


def run() -> list[dict[str, Any]]:
    """Measures and returns the benchmark's rows."""
    with prepared() as setup:
        rounds = [
            measure(setup, piece, first=number)
            for number, piece in enumerate(setup.slices)
        ]
        found, schema = setup.scores(), setup.work.schema
        tokens = sum(len(one.token_ids) - 1 for one in found)
        size = parquet.bytes_of(
            [scores.to_table(found, schema)], schema, **setup.work.options
        )
    total = {way: sum(one[way] for one in rounds) for way in rounds[0]}
    bare = min(("one by one", "packed"), key=lambda way: total[way])
    positions, width, vocabulary = LARGEST
    made = [
        rows.ratio_at_least(
            0.95,
            f"score, {setup.name}, {torch.get_num_threads()} threads",
            tokens / total["score"],
            "tokens/s",
            against=f"bare forward {bare}, {tokens / total[bare]:,.0f} tokens/s",
            ratio=total[bare] / total["score"],
        ),
        rows.at_most(
            30,
            f"scores file, k = {TOP_K}, {setup.name}",
            size / tokens,
            "B/token",
            against="FuseLLM, 108 B/token",
            ratio=size / tokens / 108,
        ),
        rows.at_most(
            0.7e9,
            f"head and top-k, {positions:,} x {width:,} x {vocabulary:,}, bfloat16:"
            " memory above features and weights",
            held.score_extra_bytes(*LARGEST, k=TOP_K),
            "bytes",
        ),
    ]
    return [*made, compiled(tokens, total["score"])] if COMPILES else made


def compiled(tokens: int, plain_s: float) -> dict[str, Any]:
    """Measures `--compile` on the same slices; what the compiler takes is left out.

    Args:
      tokens: of the slices.
      plain_s: what scoring took without it.
    """
    with prepared(compiles=True) as setup:
        start = time.perf_counter()
        for piece in setup.slices:
            slices.make(setup.work, piece)
        taken = time.perf_counter() - start
    return rows.ratio_at_least(
        1.0,
        f"score --compile, {setup.name}, {torch.get_num_threads()} threads",
        tokens / taken,
        "tokens/s",
        against=f"without, {tokens / plain_s:,.0f} tokens/s",
        ratio=plain_s / taken,
    )


def sections() -> dict[str, str]:
    """Measures where the time goes; returns the section `spent` of the results."""
    with prepared() as setup:
        spent = Spent()
        start = time.perf_counter()
        with watched(spent, setup.engine):
            for piece in setup.slices:
                slices.make(setup.work, piece)
        wall = time.perf_counter() - start
    return {"spent": f"{setup.name}, {wall:.1f} s:\n\n{table(spent, wall)}"}


def table(spent: Spent, wall: float) -> str:
    """Writes a table of the parts of each thread, and what is left of the first one's.

    Args:
      spent: what was counted.
      wall: seconds from beginning to end.
    """
    lines = []
    for thread in sorted({thread for thread, _ in spent.seconds}):
        parts = spent.of(thread)
        if thread == "MainThread":
            parts["waiting, and all else"] = wall - sum(parts.values())
        lines += [
            (part, THREADS.get(thread, thread), f"{s:.2f}", f"{s / wall:.1%}")
            for part, s in parts.items()
        ]
    return comparison.table(("part", "thread", "s", "of the whole"), lines)


THREADS = {"MainThread": "the model's", "ahead": "in front", "behind": "behind"}
AROUND: list[tuple[Any, str, str]] = [
    (windows, "read_slice", "read"),
    (encodings, "encode", "tokenize"),
    (logits, "split", "copy"),
    (Scorer, "_record", "records"),
    (rounding, "round_scores", "round"),
    (scores, "to_table", "encode"),
    (parquet.TableWriter, "write", "write"),
]
"""Parts of scoring that are not the model's: owner, function, name."""


@contextlib.contextmanager
def watched(spent: Spent, inner: Engine) -> Iterator[None]:
    """Counts what the parts of scoring take."""
    reduce = spent.timed(inner.reduction.reduce, "top-k, log-sum-exp, gold")
    before = inner.reduction
    inner.reduction = dataclasses.replace(before, reduce=reduce)
    parts = [
        *AROUND,
        (type(inner.way), "features", "body"),
        (Halves, "logits", "head"),
        (transfers, "download", "copy"),
    ]
    with spent.watching_all(parts):
        yield
    inner.reduction = before


def measure(setup: Setup, piece: Slice, *, first: int) -> dict[str, float]:
    """Goes each way over a slice, number `first` in front; returns the seconds."""
    ready = setup.ready
    encoded = [
        ready.tokenizer.encode_window(window.text, window.eos_follows)
        for window in windows.read_all(setup.work.windows, [piece])
    ]
    given = [
        Row(place=n, token_ids=e.token_ids, chances=np.empty((len(e.token_ids) - 1, 0)))
        for n, e in enumerate(encoded)
    ]
    alone = [torch.from_numpy(e.token_ids[:-1]).long()[None] for e in encoded]
    ways: list[tuple[str, Callable[[], None]]] = [
        ("score", lambda: slices.make(setup.work, piece)),
        ("one by one", lambda: pass_plainly(setup.engine.halves.model, alone)),
        ("packed", Passes(setup.engine, given).ways()["bare"]),
    ]
    seconds: dict[str, float] = {}
    for turn in range(len(ways)):
        name, work = ways[(first + turn) % len(ways)]
        start = time.perf_counter()
        work()
        seconds[name] = time.perf_counter() - start
    return seconds


@contextlib.contextmanager
def prepared(*, compiles: bool = False) -> Iterator[Setup]:
    """Makes a windows folder, and loads a model that has scored a little of it.

    Args:
      compiles: whether torch compiles the model; it has read all of the text, then.
    """
    with tempfile.TemporaryDirectory() as folder:
        name, model = model_of(Path(folder))
        settings = ScorerSettings(
            model=model, top_k=TOP_K, device="cpu", dtype="float32", compile=compiles
        )
        text, output = f"{folder}/windows", f"{folder}/scores"
        work = ScoreSlices(
            windows=text,
            output=output,
            settings=settings,
            model=scorer.model_fingerprint(model),
            tokenizer=tokenizer.load(model).fingerprint,
            identity=files.digest([model]),
        )
        warming = write_slice(text, 0, groups=1, count=2)
        pieces = [
            write_slice(text, number, groups=GROUPS, count=GROUP_WINDOWS)
            for number in range(1, SLICES + 1)
        ]
        try:
            for piece in [warming, *(pieces if compiles else [])]:
                slices.make(work, piece)
                Path(output, piece.output).unlink()
            yield Setup(name=name, work=work, slices=pieces)
        finally:
            score.unload()


def model_of(folder: Path) -> tuple[str, str]:
    """Finds SmolLM2, or makes a model where it is not there; returns name and path."""
    fetched = smollm2.find()
    if fetched is not None:
        return "SmolLM2-135M", str(fetched)
    torch.manual_seed(0)
    made = tiny.byte_level(4096)
    config = LlamaConfig(
        vocab_size=made.get_vocab_size(),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        max_position_embeddings=MAX_TOKENS,
    )
    path = tiny.save(folder / "model", made, LlamaForCausalLM(config))
    return "random Llama of 10M", str(path)


def write_slice(folder: str, number: int, *, groups: int, count: int) -> Slice:
    """Writes a file of windows that is a slice, so many row groups of so many."""
    made = [cut(number, place, count) for place in range(groups)]
    digests = [windows.ids_digest(w.window_id for w in group) for group in made]
    piece = Slice(
        index=number,
        file=f"part-{number:05d}.parquet",
        row_group_start=0,
        row_group_stop=len(made),
        windows=sum(map(len, made)),
        text_bytes=sum(len(w.text.encode()) for group in made for w in group),
        digest=windows.slice_digest(digests),
    )
    footer = {"fingerprint": "", "tokens": None}
    path = files.join(folder, piece.file)
    with parquet.writer(path, windows.SCHEMA, footer) as tables:
        for group in made:
            tables.write(windows.to_table(group))
    return piece


def cut(number: int, group: int, count: int) -> list[Window]:
    """Cuts windows out of Python's manual: most of them short, some of them long."""
    manual = "\n".join(pydoc_data.topics.topics.values())
    rng = np.random.default_rng([number, group])
    sizes = rng.lognormal(mean=5.6, sigma=0.9, size=count).clip(30, 1500)
    starts = rng.integers(0, len(manual) - 1500, count)
    return [
        Window(
            window_id=f"{number}-{group}-{place}",
            doc_id=f"{number}-{group}-{place}",
            text=manual[start : start + int(size)],
            byte_start=0,
            ends_document=bool(place % 2),
        )
        for place, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]


@torch.inference_mode()
def pass_plainly(model: Any, inputs: list[torch.Tensor]) -> None:
    """Calls the model on each batch."""
    for ids in inputs:
        model(input_ids=ids, use_cache=False)
