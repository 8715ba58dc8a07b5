"""Searches for merges of small experts, and writes what comes out to docs/results.md.

    python -m examples.merge_search --size full    half an hour on two cores
    python -m examples.merge_search --size tiny    some minutes: no page

A base is trained on three domains and continued on each of them, to an expert of it.
Then, for every method that can be searched, `fusebeam search` looks for the weights
that merge the experts best: CMA-ES, and with as many evaluations the baselines. All
models are made on the spot, of text of installed packages. What is done is kept: the
same command goes on where it stopped.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples import corpus, demo, merge_search_page, models, results, seeds
from examples.corpus import DOMAINS, Size
from examples.models import Plan
from pipelines import card, prepare, search, searching
from pipelines.prepare import PrepareConfig
from schemas import files
from train.search import trials
from transforms import allocator

PART, PLOT = "search", "docs/search.svg"
SPLITS = "base=.5,expert=.42,search=.04,report=.04"
WINDOW_BYTES = 1000
EXCERPTS: Mapping[Size, int] = {"full": 14, "tiny": 4}
"""Windows of each domain that are searched on, and as many that are reported on."""

BUDGET: Mapping[Size, int] = {"full": 60, "tiny": 8}

_BASE = Plan(
    name="base",
    architecture="llama",
    vocabulary=1024,
    mixture=dict.fromkeys(DOMAINS, 1 / 3),
    width=96,
    layers=4,
    steps=150,
    batch=4,
    learning_rate=4e-3,
)
BASE: Mapping[Size, Plan] = {
    "full": _BASE,
    "tiny": dataclasses.replace(_BASE, vocabulary=512, width=32, layers=2, steps=20),
}


def expert(base: Plan, domain: str) -> Plan:
    """Returns how the expert of a domain goes on from the base."""
    return dataclasses.replace(
        base,
        name=domain,
        mixture={domain: 1.0},
        steps=base.steps * 2 // 3,
        learning_rate=base.learning_rate / 2,
    )


def make_inputs(output: str, size: Size) -> None:
    """Makes text and models below `output`, unless they are there.

    Raises:
      SystemExit: if other ones are there.
    """
    mark, base = files.join(output, "inputs.json"), BASE[size]
    plans = [base, *(expert(base, domain) for domain in DOMAINS)]
    wanted = {
        "size": size,
        "splits": SPLITS,
        "window_bytes": WINDOW_BYTES,
        "excerpts": EXCERPTS[size],
        "models": [dataclasses.asdict(plan) for plan in plans],
    }
    if files.exists(mark):
        if files.read_json(mark) != wanted:
            raise SystemExit(
                f"error: {output} was made by another version of this; remove it"
            )
        return
    make_windows(output, size)
    place, windows = (files.join(output, name) for name in ("models", "prepared"))
    seen = models.read_texts(files.join(windows, "base"))
    nats = models.make_model(base, seen, files.join(place, base.name))
    print(f"── {base.name}: {nats:.3f} nats a token at the end", flush=True)
    more = models.read_texts(files.join(windows, "expert"))
    for plan in plans[1:]:
        from_base = files.join(place, base.name)
        nats = models.continue_model(
            plan, more, from_base, files.join(place, plan.name)
        )
        print(f"── {plan.name}: {nats:.3f} nats a token at the end", flush=True)
    files.write_json(mark, wanted)


def make_windows(output: str, size: Size) -> None:
    """Makes text, splits it by document, and cuts down what is measured on."""
    texts = files.join(output, "corpus")
    corpus.write_corpus(texts, "tiny")
    common = {"id_field": "id", "domain_field": "domain", "max_bytes": WINDOW_BYTES}
    prepare.prepare_corpus(
        PrepareConfig(
            inputs=tuple(files.join(texts, f"{domain}.jsonl") for domain in DOMAINS),
            output=files.join(output, "prepared"),
            splits=SPLITS,
            **common,  # type: ignore[arg-type]
        )
    )
    demo.write_excerpts(output, dict.fromkeys(("search", "report"), EXCERPTS[size]))
    prepare.prepare_corpus(
        PrepareConfig(
            inputs=(files.join(output, "inputs", "excerpts.jsonl"),),
            output=files.join(output, "windows"),
            split_field="split",
            splits="search,report",
            **common,  # type: ignore[arg-type]
        )
    )


def write_recipe(
    output: str, method: str, seed: int, size: Size, *, first: bool
) -> str:
    """Writes the recipe of a search; returns its path.

    Args:
      output: folder of the example.
      method: of the merge.
      seed: of the search.
      size: of the models.
      first: whether it is of the first seed, and so has all baselines.
    """
    name = f"{method}-{seed}"
    place = files.join(output, "models")
    merge = {
        "models": {domain: files.join(place, domain) for domain in DOMAINS},
        "base": files.join(place, "base"),
        "method": method,
        "output": files.join(output, name, "merged"),
    }
    told = {
        "windows": files.join(output, "windows", "search"),
        "report": files.join(output, "windows", "report"),
        "output": files.join(output, name, "search"),
        "budget": BUDGET[size],
        "groups": 2,
        "seed": seed,
        "device": "cpu",
    }
    if not first:  # the others do not depend on the seed
        told["baselines"] = [searching.RANDOM]
    lines = [f"{key} = {card.toml(value)}" for key, value in told.items()]
    text = "\n".join([card.merge_table(merge, ()), "[search]", *lines]) + "\n"
    path = files.join(output, f"{name}.toml")
    files.write_bytes(path, text.encode())
    return path


def search_all(
    output: str, size: Size, seeds: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Searches with every method and seed; returns the results by both."""
    found: dict[str, dict[str, Any]] = {}
    for method in searching.METHODS:
        for seed in seeds:
            path = write_recipe(output, method, seed, size, first=seed == seeds[0])
            print(f"── {path}", flush=True)
            result = search.search(searching.read_recipe(path, {}), lambda _: None)
            found.setdefault(method, {})[str(seed)] = result
    return found


def arms_of(
    output: str, method: str, size: Size, seed: int
) -> dict[str, list[trials.Trial]]:
    """Reads the trials of a method's search of the first seed, by arm."""
    path = write_recipe(output, method, seed, size, first=True)
    given = searching.read_recipe(path, {})
    names = (*searching.BASELINES, searching.EVOLUTION)
    return {name: trials.read(search.trials_path(given, name)) for name in names}


def main(argv: Sequence[str]) -> None:
    """Makes what is missing, searches, and writes the page."""
    given = seeds.parse(argv, "examples.merge_search", __doc__, BASE, {"full": PART})
    full, page = given.size == "full", given.page
    output = given.output or ("runs/search" if full else "runs/search-tiny")
    allocator.keep_large_blocks()
    make_inputs(output, given.size)
    found = {
        "searches": search_all(output, given.size, given.seeds),
        "budget": BUDGET[given.size],
        "run": results.about(argv, "examples.merge_search"),
    }
    text = merge_search_page.page(found)
    print(f"\n{text}")
    if page is not None:
        arms = {
            m: arms_of(output, m, given.size, given.seeds[0]) for m in searching.METHODS
        }
        Path(page).with_name(Path(PLOT).name).write_text(merge_search_page.plot(arms))
        results.write_page(page, text, PART)
        print(f"\n{page} is written")


if __name__ == "__main__":
    main(sys.argv[1:])
