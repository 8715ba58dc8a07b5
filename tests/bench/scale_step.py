"""One step of the measurement of scale, in a process of its own that measures itself.

    python -m tests.bench.scale_step FOLDER STEP RESULT.json

A step is a command as its user runs it; but scoring has no model. The figures are of
the work alone: what Python takes to load the modules is told apart, and so are the
bytes that are held before the work begins.
"""

import importlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import scale_corpus
from tests.bench.scale_corpus import Shape

Step = tuple[str, Callable[[Path, Shape], list[str]]]


def _plan(folder: Path, _: Shape) -> list[str]:
    return [f"--recipe={folder}/recipe.toml", f"--json={folder}/plan.json"]


def _prepare(folder: Path, shape: Shape) -> list[str]:
    return [
        f"--inputs={folder}/corpus.jsonl",
        f"--output={folder}/run/windows",
        "--models",
        f"{folder}/models/{scale_corpus.TARGET}",
        f"{folder}/models/{scale_corpus.SOURCE}",
        "--id_field=id",
        "--split_field=split",
        "--splits=fusion,heldout",
        f"--max_tokens={scale_corpus.MAX_TOKENS}",
        f"--group_windows={shape.group_windows}",
        f"--slice_bytes={shape.slice_bytes}",
    ]


def _fuse(folder: Path, _: Shape) -> list[str]:
    return [
        f"--windows={folder}/run/windows/fusion",
        f"--target={folder}/run/scores/target",
        f"--sources={scale_corpus.SOURCE}={folder}/run/scores/{scale_corpus.SOURCE}",
        f"--output={folder}/run/fused",
        f"--top_k={scale_corpus.TOP_K}",
        f"--seq_length={scale_corpus.SEQ_LENGTH}",
    ]


def _score(name: str, *more: str) -> Callable[[Path, Shape], list[str]]:
    def flags(folder: Path, _: Shape) -> list[str]:
        model = scale_corpus.TARGET if name == "target" else name
        return [
            f"--windows={folder}/run/windows/fusion",
            f"--model={folder}/models/{model}",
            f"--output={folder}/run/scores/{name}",
            f"--top_k={scale_corpus.TOP_K}",
            *more,
        ]

    return flags


_STUB = "tests.bench.scale_stub"
STEPS: dict[str, Step] = {
    "plan": ("pipelines.estimate", _plan),
    "prepare": ("pipelines.prepare", _prepare),
    "score target": (_STUB, _score("target")),
    "score source": (_STUB, _score(scale_corpus.SOURCE)),
    "fuse": ("pipelines.fuse", _fuse),
    "do all slices": (_STUB, _score("target", "--unfinished")),
    "one of an array": (_STUB, _score("target", "--unfinished", "--slices=0")),
    "skip all, describe": (_STUB, _score("target")),
    "whole already": (_STUB, _score("target")),
}
"""What can be measured, by name: the command's module, and its flags."""


def main(argv: list[str]) -> None:
    """Does a step and writes what it took."""
    folder, step, result = Path(argv[0]), argv[1], Path(argv[2])
    module, flags = STEPS[step]
    run = importlib.import_module(module).main
    words = flags(folder, scale_corpus.shape_of(folder))
    loaded = resource.getrusage(resource.RUSAGE_SELF)
    held, start = _memory("VmRSS"), time.perf_counter()
    run(words)
    wall_s = time.perf_counter() - start
    now = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "cpu_s": _cpu(now) - _cpu(loaded),
        "load_cpu_s": _cpu(loaded),
        "wall_s": wall_s,
        "held_bytes": held,
        "peak_bytes": _memory("VmHWM"),
    }
    result.write_text(json.dumps(figures))


def _cpu(used: resource.struct_rusage) -> float:
    return used.ru_utime + used.ru_stime


def _memory(field: str) -> int:
    """Reads resident bytes: VmRSS those of now, VmHWM the most so far."""
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, "/proc must be Linux's"
    return int(found[1]) * 1024


if __name__ == "__main__":
    main(sys.argv[1:])
