"""`python -m train`: the trainer's command line; also under torchrun."""

import sys
from collections.abc import Sequence

from accelerate import PartialState

from schemas import settings
from train import trainer
from train.config import TrainConfig
from train.faults import PeerError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    config = settings.parse_flags(
        TrainConfig,
        sys.argv[1:] if argv is None else argv,
        prog="fusebeam train",
        description="Continue the training of a target model on fused shards.",
    )
    try:
        result = trainer.train(config)
    except (ValueError, OSError, PeerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not PartialState().is_main_process:
        return 0
    state = "was trained already" if result.skipped else "is trained"
    print(
        f"{result.output} {state}: {result.steps:,} steps, {result.tokens:,} tokens",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
