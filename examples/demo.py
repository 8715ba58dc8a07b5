"""The demo: fuses LLMs of different architectures and tokenizers, end to end.

    python -m examples.demo --size full     15 minutes on two cores, in runs/demo
    python -m examples.demo --size tiny     two minutes, in runs/tiny, for a first try

It does what anyone would do with models and text of their own: `fusebeam run` with the
recipe beside this file. What that names is made first: a corpus from installed packages
is split by document, the small models are trained on the split `base`, and excerpts are
taken of the other splits.
"""

import argparse
import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from examples import corpus, inputs, models, smollm2
from examples.corpus import Size
from pipelines import prepare, recipe, run
from pipelines.prepare import PrepareConfig
from schemas import files, plan, windows
from transforms import allocator

SPLITS = "base=.7,fusion=.1,dev=.1,heldout=.1"
WINDOW_BYTES = 1000
EXCERPTS: dict[Size, dict[str, int]] = {
    "full": {"fusion": 64, "dev": 32, "heldout": 48},
    "tiny": {"fusion": 16, "dev": 4, "heldout": 16},
}
"""Windows of each domain that a split is cut down to, so that CPUs can score them."""

RECIPES: dict[Size, str] = {
    "full": "examples/demo.toml",
    "tiny": "examples/tiny.toml",
}


def make_inputs(output: str, size: Size) -> None:
    """Makes corpus, models and excerpts below `output`, unless they are there.

    Raises:
      SchemaError: if those of other settings are there.
    """
    wanted = {
        "size": size,
        "splits": SPLITS,
        "window_bytes": WINDOW_BYTES,
        "excerpts": EXCERPTS[size],
        "models": [dataclasses.asdict(planned) for planned in models.PLANS[size]],
    }
    with inputs.making(output, wanted) as missing:
        if missing:
            _make_texts(output, size)
            _make_models(output, size)
            write_excerpts(output, EXCERPTS[size])


def _make_texts(output: str, size: Size) -> None:
    """Makes the corpus, and splits it by document."""
    texts = files.join(output, "corpus")
    print("── make the corpus from installed packages", flush=True)
    for domain, n_bytes in corpus.write_corpus(texts, size).items():
        print(f"   {domain}: {n_bytes:,} bytes")
    print("── split it by document", flush=True)
    made = prepare.prepare_corpus(
        PrepareConfig(
            inputs=tuple(files.join(texts, f"{d}.jsonl") for d in corpus.DOMAINS),
            output=files.join(output, "prepared"),
            id_field="id",
            domain_field="domain",
            splits=SPLITS,
            max_bytes=WINDOW_BYTES,
        )
    )
    for split, described in made.items():
        print(f"   {split}: {described.counts['documents']:,} documents")


def _make_models(output: str, size: Size) -> None:
    """Trains the models on the split `base`."""
    allocator.keep_large_blocks()
    base = models.read_texts(files.join(output, "prepared", "base"))
    for planned in models.PLANS[size]:
        print(f"── train the model {planned.name} on the split base", flush=True)
        folder = files.join(output, "inputs", planned.name)
        nats = models.make_model(planned, base, folder)
        print(f"   {nats:.3f} nats a token at the end")
    if size == "full":
        print("── unpack SmolLM2", flush=True)
        smollm2.unpack(files.join(output, "inputs", "smollm2"))


def write_excerpts(output: str, counts: Mapping[str, int]) -> None:
    """Writes the windows that are fused and measured, as a corpus of its own.

    Of each split and domain those with the lowest ids, which are hashes. Each becomes a
    document of its own, so all arms alike learn an EOS behind it.

    Args:
      output: holds `prepared`, and gets the corpus below `inputs`.
      counts: windows of each domain, by split.
    """
    lines = []
    for split, count in counts.items():
        folder = files.join(output, "prepared", split)
        found = sorted(
            windows.read_all(folder, plan.read(folder)),
            key=lambda window: (window.domain or "", window.window_id),
        )
        for domain, group in itertools.groupby(found, key=lambda w: w.domain):
            for window in itertools.islice(group, count):
                record = {
                    "id": window.window_id,
                    "domain": domain,
                    "split": split,
                    "text": window.text,
                }
                lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    path = files.join(output, "inputs", "excerpts.jsonl")
    files.write_bytes(path, "".join(lines).encode())


def orders(result: dict[str, Any]) -> dict[str, bool]:
    """Says which of the expected orders hold, by what they say."""
    scored = result["models"]
    domains = [*result["bytes"], "all"]

    def below(one: str, other: str, where: list[str]) -> bool:
        return all(scored[one][d] < scored[other][d] for d in where)

    tuned = [arm for arm in ("clm", "clm_tuned") if arm in scored]
    return {
        **{
            f"fused beats {arm} in every domain and over all": below(
                "fused", arm, domains
            )
            for arm in tuned
        },
        **{
            f"{arm} beats the untouched target over all": below(
                arm, "untouched", ["all"]
            )
            for arm in ("fused", *tuned)
        },
    }


def main() -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description="fuse LLMs end to end, on this CPU")
    parser.add_argument("--size", choices=tuple(RECIPES), default="full")
    given = parser.parse_args()
    if not Path(RECIPES[given.size]).exists():
        raise SystemExit("error: run the demo from the repository's folder")
    planned = recipe.read(RECIPES[given.size])
    result = run.run(planned)
    held = orders(result)
    print()
    for order, holds in held.items():
        print(f"{'yes' if holds else 'NO ':<4} {order}")
    files.write_json(files.join(planned.output, "orders.json"), held)


if __name__ == "__main__":
    main()
