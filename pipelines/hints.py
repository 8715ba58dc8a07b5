"""Resource hints: what a worker needs for the step that they are given to."""

from collections.abc import Sequence

from apache_beam.transforms import resources

KNOWN = ("accelerator", "min_ram", "cpu_count", "max_active_bundles_per_worker")


def parse(entries: Sequence[str]) -> dict[str, str]:
    """Reads NAME=VALUE entries.

    Example:
      >>> parse(["min_ram=32GB", "accelerator=type:nvidia-l4;count:1"])
      {'min_ram': '32GB', 'accelerator': 'type:nvidia-l4;count:1'}

    Raises:
      ValueError: if an entry is malformed, unknown, said twice, or no value of its
        kind.
    """
    found: dict[str, str] = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        if name not in KNOWN or name in found or not value:
            raise ValueError(
                f"worker_hints must be NAME=VALUE, each name once, of"
                f" {', '.join(KNOWN)}, got {entry!r}"
            )
        if name in ("cpu_count", "max_active_bundles_per_worker"):
            fits, kind = value.isdigit() and int(value) > 0, "a whole number above 0"
        else:
            fits, kind = _beam_reads(name, value), "what Beam reads, as in 32GB"
        if not fits:
            raise ValueError(f"worker_hints: {name} must be {kind}, got {value!r}")
        found[name] = value
    return found


def _beam_reads(name: str, value: str) -> bool:
    try:
        resources.parse_resource_hints({name: value})
    except ValueError:
        return False
    return True
