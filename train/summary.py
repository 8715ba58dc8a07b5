"""Bits per byte of several models side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.errors import SchemaError
from train import evaluate


def summarize(found: Mapping[str, evaluate.Domains]) -> dict[str, Any]:
    """Puts the results of several models side by side.

    Args:
      found: what `evaluate_model` returned, by the name the model has in the table.

    Returns:
      `{"models": {name: {domain: bits per byte, ..., "all": ...}}, "bytes": {domain:
      bytes}}`.

    Raises:
      SchemaError: if they were measured on different text.
    """
    sizes = {
        name: {domain: d["bytes"] for domain, d in domains.items()}
        for name, domains in found.items()
    }
    bits = {name: evaluate.bits_per_byte(domains) for name, domains in found.items()}
    first = next(iter(sizes), None)
    for name, size in sizes.items():
        if size != sizes[first]:  # type: ignore[index]
            raise SchemaError(
                f"all models must be measured on the same bytes, but {first} was on"
                f" {sizes[first]} and {name} on {size}"  # type: ignore[index]
            )
    return {"models": bits, "bytes": sizes[first] if first is not None else {}}


def table(summary: Mapping[str, Any]) -> str:
    """Writes bits per byte as text: a line a model, a column a domain."""
    domains = [*summary["bytes"], evaluate.ALL]
    names = list(summary["models"])
    wide = max(len(word) for word in ("bits per byte", *names))
    size = {**summary["bytes"], evaluate.ALL: sum(summary["bytes"].values())}
    widths = [max(10, len(domain), len(f"{size[domain]:,}")) for domain in domains]

    def line(head: str, cells: Sequence[str]) -> str:
        right = "  ".join(c.rjust(w) for c, w in zip(cells, widths, strict=True))
        return f"{head:<{wide}}  {right}"

    rows = [line("bits per byte", domains)]
    for name in names:
        bits = summary["models"][name]
        rows.append(line(name, [f"{bits[domain]:.4f}" for domain in domains]))
    return "\n".join([*rows, line("bytes", [f"{size[d]:,}" for d in domains])])
