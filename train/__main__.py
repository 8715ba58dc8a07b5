"""`python -m train`: the trainer's command line; also under torchrun and accelerate."""

import sys

from schemas import settings
from train import trainer
from train.config import TrainConfig


def main(argv: list[str] | None = None) -> None:
    """Parses the flags and trains."""
    config = settings.parse_flags(
        TrainConfig,
        sys.argv[1:] if argv is None else argv,
        prog="fusebeam train",
        description="Continue the training of a target model on fused shards.",
    )
    try:
        result = trainer.train(config)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        raise SystemExit(f"error: {error}") from error
    state = "was trained already" if result.skipped else "is trained"
    print(
        f"{result.output} {state}: {result.steps:,} steps, {result.tokens:,} tokens",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
