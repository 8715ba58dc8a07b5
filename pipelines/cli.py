"""fusebeam: one command, a word for each stage.

Each stage is also a module with a `main` of its own, which `python -m pipelines.score`
runs; `fusebeam score` does the same, and tells errors that a user can mend in one line.
"""

import importlib
import os
import re
import sys
from collections.abc import Sequence

from schemas import version

COMMANDS = {
    "plan": ("pipelines.estimate", "say what a run will take, in bytes, hours, money"),
    "prepare": ("pipelines.prepare", "cut a corpus into windows that fit every model"),
    "score": ("pipelines.score", "write a model's top-k distributions over windows"),
    "map": ("pipelines.map", "choose one target token for each source token"),
    "fuse": ("pipelines.fuse", "align and fuse scores into training shards"),
    "train": ("train.__main__", "continue the target model on fused shards"),
    "merge": ("pipelines.merge", "make one model of several, tensor by tensor"),
    "search": ("pipelines.search", "find the weights that make the best merge"),
    "evaluate": ("train.evaluate", "measure bits per byte on windows, and benchmarks"),
    "run": ("pipelines.run", "do all stages of a recipe on this machine"),
    "verify": ("pipelines.verify", "prove from the files that nothing was lost"),
    "inspect": ("pipelines.inspect", "show windows, scores or fused rows as text"),
    "clean": ("pipelines.clean", "remove what killed commands left behind"),
}

EXTRAS = {
    "accelerate": "train",
    "gguf": "gguf",
    "sentencepiece": "gguf",
    "lm_eval": "eval",
    "datasets": "eval",
    "cmaes": "search",
    "peft": "lora",
    "bitsandbytes": "quantize",
    "vllm": "vllm",
    "tensorboard": "track",
    "wandb": "track",
    "gcsfs": "gcp",
    "s3fs": "aws",
    "kernels": "fp8",  # the last, as it is a word that others use
}
"""Which of our extras installs a package that not every command needs."""


def usage() -> str:
    """Returns the help of the command."""
    lines = [
        "usage: fusebeam COMMAND [flags]",
        "",
        "Fuse the knowledge of several LLMs into one.",
        "",
        *(f"  {name:<9} {text}" for name, (_, text) in COMMANDS.items()),
        "",
        "fusebeam COMMAND --help shows a command's flags, defaults and units.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"fusebeam {version.VERSION}")
        return 0
    if words[0] not in COMMANDS:
        print(f"error: no command {words[0]!r}\n\n{usage()}", file=sys.stderr)
        return 2
    try:
        status = importlib.import_module(COMMANDS[words[0]][0]).main(words[1:])
    except BrokenPipeError:
        # Whoever read our output has seen enough; the flush at exit must not fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        if (line := told(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 1
    return int(status or 0)


def told(error: Exception) -> str | None:
    """Tells an error in one line, with its cure; None for what is a slip of ours."""
    if not isinstance(error, ImportError):
        return str(error)
    link: BaseException | None = error
    while link is not None:
        name = (getattr(link, "name", None) or "").split(".")[0]
        # The one that is named first: a path may hold the name of another.
        for package, extra in sorted(EXTRAS.items(), key=lambda one: one[0] != name):
            # Libraries name the package in the text where they look for it themselves.
            if package == name or re.search(rf"\b{package}\b", str(link), re.I):
                return (
                    f"this needs the package {package}; run pip install"
                    f" 'fusebeam[{extra}]'"
                )
        link = link.__cause__ or link.__context__
    return None


if __name__ == "__main__":
    sys.exit(main())
