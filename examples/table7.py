"""The paper's comparison in the small: FuseLLM's Table 7, of three experts of one base.

    python -m examples.table7                    three seeds, into docs/results.md
    python -m examples.table7 --seeds 0          one of them; no page
    fusebeam run examples/table7.toml            the first seed alone, no page
    python -m examples.table7 --size tiny        a minute, to try the road; no page

One small Llama is trained on three domains and continued on each, to an expert of it.
Then come the ways to make one model of the experts: the mean of their probabilities, a
merge of their weights by every method, the base taught by them (fusion), and the base
continued by CLM on the very rows of fusion. A seed is of the models' weights, of the
order of all that is trained on, and of what merges draw; text and splits are the same.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from examples import corpus, demo, inputs, models, results, seeds, table7_page
from examples.corpus import DOMAINS
from examples.models import Plan
from pipelines import prepare, recipe, run
from pipelines.prepare import PrepareConfig
from schemas import files
from transforms import allocator, causal

Size = Literal["full", "tiny", "gpu"]

PART = "table7"
SPLITS = "base=.5,expert=.3,fusion=.1,dev=.05,heldout=.05"

RECIPES: Mapping[Size, str] = {
    "full": "examples/table7.toml",
    "tiny": "examples/table7_tiny.toml",
    "gpu": "examples/table7_gpu.toml",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """How large all of it is.

    Attributes:
      text: size of the corpus.
      window_bytes: of a window, at most.
      excerpts: windows of each domain that a split is cut down to.
      base: the model that the experts go on from.
      expert_steps: steps of each expert.
      expert_rate: their learning rate at its peak.
      device: where these models are trained.
    """

    text: corpus.Size
    window_bytes: int
    excerpts: Mapping[str, int]
    base: Plan
    expert_steps: int
    expert_rate: float
    device: str = "cpu"

    def expert(self, domain: str) -> Plan:
        """Returns how the expert of a domain goes on from the base."""
        return dataclasses.replace(
            self.base,
            name=domain,
            mixture={domain: 1.0},
            steps=self.expert_steps,
            learning_rate=self.expert_rate,
        )


def _base(width: int, layers: int, vocabulary: int, steps: int, batch: int) -> Plan:
    return Plan(
        name="base",
        architecture="llama",
        vocabulary=vocabulary,
        mixture=dict.fromkeys(DOMAINS, 1 / 3),
        width=width,
        layers=layers,
        steps=steps,
        batch=batch,
        learning_rate=4e-3 if width < 512 else 6e-4,
    )


SCALES: Mapping[Size, Scale] = {
    "full": Scale(
        text="full",
        window_bytes=1000,
        excerpts={"fusion": 96, "dev": 32, "heldout": 48},
        base=_base(width=128, layers=4, vocabulary=1024, steps=300, batch=4),
        expert_steps=120,
        expert_rate=4e-4,
    ),
    "tiny": Scale(
        text="tiny",
        window_bytes=600,
        excerpts={"fusion": 6, "dev": 3, "heldout": 4},
        base=_base(width=32, layers=2, vocabulary=512, steps=12, batch=4),
        expert_steps=6,
        expert_rate=2e-3,
    ),
    # About 100 million parameters. Nobody has run it yet.
    "gpu": Scale(
        text="full",
        window_bytes=4000,
        excerpts={"fusion": 96, "dev": 40, "heldout": 40},
        base=_base(width=768, layers=12, vocabulary=16384, steps=600, batch=16),
        expert_steps=60,
        expert_rate=1e-4,
        device="cuda",
    ),
}


def make_inputs(output: str, size: Size, seed: int = 0) -> None:
    """Makes text and models below `output`, unless they are there.

    Raises:
      SchemaError: if those of other settings are there.
      ValueError: if there is no such device, or the folder is in a bucket.
    """
    scale = SCALES[size]
    experts = [scale.expert(domain) for domain in DOMAINS]
    wanted = {
        "size": size,
        "seed": seed,
        "splits": SPLITS,
        "window_bytes": scale.window_bytes,
        "excerpts": scale.excerpts,
        "models": [dataclasses.asdict(plan) for plan in (scale.base, *experts)],
    }
    with inputs.making(output, wanted) as missing:
        if missing:
            causal.choose_device(scale.device)  # not after minutes
            allocator.keep_large_blocks()
            _make_windows(output, scale)
            _make_models(output, scale, experts, seed)


def _make_models(output: str, scale: Scale, experts: Sequence[Plan], seed: int) -> None:
    """Trains the base, and goes on from it to each expert."""
    place = files.join(output, "inputs")
    base = files.join(place, scale.base.name)
    seen = models.read_texts(files.join(output, "prepared", "base"))
    nats = models.make_model(scale.base, seen, base, seed, device=scale.device)
    print(f"── {scale.base.name}: {nats:.3f} nats a token at the end", flush=True)
    more = models.read_texts(files.join(output, "prepared", "expert"))
    for plan in experts:
        folder = files.join(place, plan.name)
        nats = models.continue_model(
            plan, more, base, folder, seed, device=scale.device
        )
        print(f"── {plan.name}: {nats:.3f} nats a token at the end", flush=True)


def _make_windows(output: str, scale: Scale) -> None:
    """Makes text, splits it by document, and cuts down what is fused and measured."""
    texts = files.join(output, "corpus")
    corpus.write_corpus(texts, scale.text)
    prepare.prepare_corpus(
        PrepareConfig(
            inputs=tuple(files.join(texts, f"{domain}.jsonl") for domain in DOMAINS),
            output=files.join(output, "prepared"),
            id_field="id",
            domain_field="domain",
            splits=SPLITS,
            max_bytes=scale.window_bytes,
        )
    )
    demo.write_excerpts(output, scale.excerpts)


def run_seed(size: Size, seed: int, output: str) -> dict[str, Any]:
    """Makes and runs all of one seed, but for what is done; returns its figures."""
    plan = recipe.read(seeds.write_recipe(RECIPES[size], seed, output))
    table = run.run(plan)
    text = files.checksum(files.join(output, "inputs", "excerpts.jsonl"))
    return {**table, "chosen": seeds.chosen(plan), "text": text}


def refuse_other_text(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses seeds that were not measured on the same text.

    Raises:
      SystemExit: if the packages that it comes of have changed between two.
    """
    texts = {one["text"] for one in found.values()}
    if len(texts) > 1:
        told = ", ".join(f"{seed}: {one['text']}" for seed, one in found.items())
        raise SystemExit(
            "error: all seeds must be of the same text, which comes from installed"
            f" packages, but it has changed between them ({told}); remove the seeds of"
            " other text, and run them again"
        )


def main(argv: Sequence[str]) -> None:
    """Runs every seed, and writes the page."""
    given = seeds.parse(argv, "examples.table7", __doc__, RECIPES, {"full": PART})
    output = given.output or f"{recipe.read(RECIPES[given.size]).output}-seeds"
    found: dict[str, Any] = {}
    for seed in given.seeds:
        print(f"── seed {seed}", flush=True)
        below = files.join(output, f"seed-{seed}")
        found[str(seed)] = run_seed(given.size, seed, below)
    refuse_other_text(found)
    whole = {"seeds": found, "run": results.about(argv, "examples.table7")}
    files.write_json(files.join(output, "table7.json"), whole)
    text = table7_page.page(whole)
    print(f"\n{text}")
    if given.page is not None:
        results.write_page(given.page, text, PART)
        print(f"\n{given.page} is written")


if __name__ == "__main__":
    main(sys.argv[1:])
