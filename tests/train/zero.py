"""DeepSpeed's ZeRO-2 and ZeRO-3 on two CPU processes, against one process without it.

    python -m tests.train.zero FOLDER

For an environment that has DeepSpeed, which the tests' own has not. Says what was
equal, or raises. Losses and held-out figures must be those of one process to 1e-5, and
a run that is stopped and goes on must end with the bytes of one that is not.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import tiny
from tests.train import held_out, shards
from tests.train.runs import curve, silent, small, weights
from train import trainer
from train.config import TrainConfig

FILES = Path(__file__).parents[2] / "deploy" / "train"
JUDGED = {"eval_steps": 2, "keep_best": True}
RISING = {"eval_steps": 1, "keep_best": True, "learning_rate": 0.3, "clip": 0.0}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "judged": JUDGED,
    "back": RISING,
    "lora": {"lora_rank": 4},
    "lora-judged": {"lora_rank": 4, **JUDGED},
}


def config(place: Path, name: str, **changes: Any) -> TrainConfig:
    judged = {"eval_data": str(place / "windows")} if "eval_steps" in changes else {}
    return small(place, name, **judged | changes)


def plan(place: Path, stage: int) -> list[dict[str, Any]]:
    """Lists the runs of two processes."""
    file = {"deepspeed": str(FILES / f"zero{stage}.json")}
    made = [
        dataclasses.asdict(config(place, f"zero{stage}-{name}", **changes, **file))
        for name, changes in RUNS.items()
    ]
    for name in ("plain", "lora"):
        again = dataclasses.asdict(
            config(place, f"zero{stage}-{name}-again", **RUNS[name], **file)
        )
        made += [again | {"stop": 2}, again]
    narrow = config(place, f"zero{stage}-narrow", dtype="bfloat16", **JUDGED, **file)
    return [*made, dataclasses.asdict(narrow)]


def main(place: Path) -> None:
    shards.write(place / "fused", vocabulary=400)
    tiny.neox(place / "neox")
    held_out.write(place / "windows", [held_out.window(n, "code") for n in range(5)])
    for name, changes in RUNS.items():
        trainer.train(config(place, name, **changes), silent)
    for stage in (2, 3):
        listed = place / f"zero{stage}.json"
        listed.write_text(json.dumps(plan(place, stage)))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node=2", "-m", "tests.train.together", str(listed)]
        subprocess.run(command, check=True)
        for name in RUNS:
            compare(place, f"zero{stage}-{name}", name)
        for name in ("plain", "lora"):
            whole, again = (f"zero{stage}-{name}{end}" for end in ("", "-again"))
            assert weights(place / again) == weights(place / whole), again
            assert curve(place / again) == curve(place / whole), again
            print(f"{again} ends with the bytes of {whole}")


def compare(place: Path, two: str, one: str) -> None:
    """Compares losses and held-out figures; says by how much they differ at most."""
    worst = 0.0
    for found, wanted in zip(curve(place / two), curve(place / one), strict=True):
        assert found.keys() == wanted.keys(), two
        for name in wanted.keys() - {"train/gradient_norm"}:
            off = abs(found[name] - wanted[name]) / max(abs(wanted[name]), 1e-9)
            assert off <= 1e-5, (two, name, found[name], wanted[name])
            worst = max(worst, off)
    print(f"{two} is {one} to {worst:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
