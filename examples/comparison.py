"""The tables of docs/results.md, computed from the raw figures of results.json.

All comparisons are paired: an arm of a seed against another arm of the same seed, which
starts from the same target. A seed without one of the two arms does not count.
"""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from train import evaluate

ALL = evaluate.ALL
Record = Mapping[str, Any]
Seeds = Mapping[str, Mapping[str, Record]]
"""Arms by seed and name, as `examples.controls` measured them."""

Pick = Mapping[str, str]
"""The name of one arm for each seed that has it."""


def bits(record: Record, split: str) -> dict[str, float]:
    """Returns an arm's bits per byte by domain, and over all."""
    return evaluate.bits_per_byte(record[split])


def one(seeds: Seeds, name: str) -> dict[str, str]:
    """Picks the arm of that name, in the seeds that have it."""
    return {seed: name for seed, arms in seeds.items() if name in arms}


def candidates(seeds: Seeds, family: str) -> list[str]:
    """Lists the arms of a grid, `clm` or `fused`, that every seed has."""
    common = set.intersection(*(set(arms) for arms in seeds.values()))
    return sorted(
        name
        for name in common
        if name == family or (name.startswith(f"{family}.") and ".rate" in name)
    )


def chosen(seeds: Seeds, names: Sequence[str]) -> dict[str, str]:
    """Picks for each seed the arm with the fewest bits per byte on the dev split."""
    if not names:
        return {}
    return {
        seed: min(names, key=lambda name: bits(arms[name], "dev")[ALL])
        for seed, arms in seeds.items()
    }


def gaps(seeds: Seeds, first: Pick, second: Pick) -> list[dict[str, float]]:
    """Subtracts held-out bits per byte, by domain, in each seed that has both arms."""
    found = []
    for seed in first.keys() & second.keys():
        a, b = (bits(seeds[seed][pick[seed]], "heldout") for pick in (first, second))
        found.append({domain: a[domain] - b[domain] for domain in a})
    return found


def wins(seeds: Seeds, first: Pick, second: Pick, words: tuple[str, str]) -> str:
    """Says in how many seeds the first arm has fewer bits per byte than the second."""
    found = gaps(seeds, first, second)
    if not found:
        return f"{words[0]} and {words[1]} have no seed in common yet."
    over_all = sum(gap[ALL] < 0 for gap in found)
    everywhere = sum(all(value < 0 for value in gap.values()) for gap in found)
    return (
        f"{words[0]} is below {words[1]} over all in {over_all} of {len(found)} seeds,"
        f" and in every domain in {everywhere} of {len(found)}."
    )


def tokens_to_reach(points: Sequence[tuple[int, float]], goal: float) -> float | None:
    """Interpolates in a line where a curve first comes down to `goal`.

    Args:
      points: tokens and bits per byte, of one run each.
      goal: bits per byte.

    Returns:
      Tokens; those of the shortest run, if that is at the goal already (fewer may do);
      None if no run comes down to it.
    """
    before: tuple[int, float] | None = None
    for tokens, cost in sorted(points):
        if cost <= goal:
            if before is None:
                return float(tokens)
            share = (before[1] - goal) / (before[1] - cost)
            return before[0] + share * (tokens - before[0])
        before = (tokens, cost)
    return None


def spread(values: Sequence[float], form: str = ".4f") -> str:
    """Writes the mean, and the range where there are several values."""
    mean = format(statistics.fmean(values), form)
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):{form}} to {max(values):{form}})"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes a Markdown table; all columns but the first are set to the right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *rows))


def domains_of(seeds: Seeds) -> list[str]:
    """Lists the domains, and `all` at the end."""
    record = next(record for arms in seeds.values() for record in arms.values())
    return list(bits(record, "heldout"))


def cells(seeds: Seeds, pick: Pick) -> list[str]:
    """Writes an arm's held-out bits per byte, a cell a domain."""
    found = [bits(seeds[seed][name], "heldout") for seed, name in pick.items()]
    return [spread([each[domain] for each in found]) for domain in domains_of(seeds)]


def over_all(seeds: Seeds, pick: Pick, split: str = "heldout") -> str:
    """Writes an arm's bits per byte over all domains; a split may lack some of them."""
    return spread([bits(seeds[s][name], split)[ALL] for s, name in pick.items()])


def chosen_part(seeds: Seeds, sources: Mapping[str, Mapping[str, float]]) -> str:
    """Writes the table of the settings that dev chose, and what it comes to."""
    names = {family: candidates(seeds, family) for family in ("clm", "fused")}
    picks = {family: chosen(seeds, names[family]) for family in names}
    rows = [["untouched", *cells(seeds, one(seeds, "untouched"))]]
    rows += [[family, *cells(seeds, pick)] for family, pick in picks.items() if pick]
    domains = domains_of(seeds)
    rows += [[n, *(f"{b[d]:.4f}" for d in domains)] for n, b in sources.items()]
    lines = [table(["bits per byte", *domains], rows), ""]
    for family, pick in picks.items():
        if len(names[family]) < 2:
            lines.append(f"- {family}: too few settings in every seed to choose from.")
            continue
        taken = Counter(pick.values()).most_common()
        told = ", ".join(f"`{name}` in {count}" for name, count in taken)
        lines.append(
            f"- Of {len(names[family])} {family} settings, dev chose {told} seeds."
        )
    pairs = (("fused", "clm"), ("fused", "untouched"), ("clm", "untouched"))
    picks["untouched"] = one(seeds, "untouched")
    for pair in pairs:
        lines.append(f"- {wins(seeds, picks[pair[0]], picks[pair[1]], pair)}")
    return "\n".join(lines)


def controls_part(seeds: Seeds) -> str:
    """Writes the table of all arms at the recipe's settings, against fused."""
    names = dict.fromkeys(name for arms in seeds.values() for name in arms)
    fused, rows = one(seeds, "fused"), []
    for name in names:
        if ".rate" in name or ".epochs" in name:
            continue
        pick = one(seeds, name)
        says = next(arms[name]["says"] for arms in seeds.values() if name in arms)
        row = [f"{says} (`{name}`)", *cells(seeds, pick)]
        found = gaps(seeds, pick, fused) if name != "fused" else []
        below = sum(gap[ALL] > 0 for gap in found)
        row.append(spread([gap[ALL] for gap in found], "+.4f") if found else "")
        row.append(f"{below} of {len(found)}" if found else "")
        rows.append(row)
    heads = ["bits per byte", *domains_of(seeds), "above fused, all", "fused is below"]
    return table(heads, rows)


def grid_part(seeds: Seeds) -> str:
    """Writes the table of all settings that dev chose from."""
    rows = []
    for name in (n for family in ("clm", "fused") for n in candidates(seeds, family)):
        record = next(iter(seeds.values()))[name]["settings"]["train"]
        pick = one(seeds, name)
        rows.append(
            [
                f"`{name}`",
                f"{record['clm_weight']:g}",
                f"{record['learning_rate']:g}",
                *(over_all(seeds, pick, split) for split in ("dev", "heldout")),
            ]
        )
    heads = ["arm", "CLM's share", "rate", "dev, all", "held-out, all"]
    return table(heads, rows)


def curve(seeds: Seeds, base: str) -> dict[float, dict[str, str]]:
    """Picks the arms of each length, by epochs."""
    found: dict[float, dict[str, str]] = {}
    for seed, arms in seeds.items():
        for name, record in arms.items():
            if name == base or name.startswith(f"{base}.epochs"):
                epochs = record["settings"]["train"]["epochs"]
                found.setdefault(epochs, {})[seed] = name
    return dict(sorted(found.items()))


def tokens_part(seeds: Seeds) -> str:
    """Writes the table of bits per byte against tokens, and what fused needs."""
    curves = {base: curve(seeds, base) for base in ("fused", "clm")}
    rows = []
    for epochs in sorted(curves["fused"].keys() & curves["clm"].keys()):
        picks = [curves[base][epochs] for base in curves]
        both = picks[0].keys() & picks[1].keys()
        picks = [{seed: pick[seed] for seed in sorted(both)} for pick in picks]
        if not both:
            continue
        tokens = {seeds[s][n]["tokens"] for pick in picks for s, n in pick.items()}
        told = [over_all(seeds, pick) for pick in picks]
        length = [f"{epochs:g}", spread(sorted(tokens), ",.0f")]
        rows.append([*length, *told, f"{len(both)}"])
    heads = ["epochs", "tokens", *(f"{base}, all" for base in curves), "seeds"]
    parts = [table(heads, rows)]
    parts += [_reach(seeds, curves, seed) for seed in one(seeds, "clm")]
    return parts[0] + "\n\n" + "\n".join(part for part in parts[1:] if part)


def _reach(seeds: Seeds, curves: Mapping[str, Mapping[float, Pick]], seed: str) -> str:
    """Says how many tokens fused needs in one seed to come down to clm's scores."""
    points = {
        base: [
            (record["tokens"], bits(record, "heldout")[ALL])
            for pick in picks.values()
            if seed in pick
            for record in [seeds[seed][pick[seed]]]
        ]
        for base, picks in curves.items()
    }
    if min(map(len, points.values())) < 2:
        return ""
    final = seeds[seed]["clm"]
    goals = {
        "what clm has at the end of the recipe": (
            final["tokens"],
            bits(final, "heldout")[ALL],
        ),
        "clm's best of these lengths": min(points["clm"], key=lambda point: point[1]),
    }
    told = []
    for words, (tokens, goal) in goals.items():
        needed = tokens_to_reach(points["fused"], goal)
        if needed is None:
            told.append(f"does not reach {words} ({goal:.4f})")
            continue
        least = "at most " if needed == min(points["fused"])[0] else ""
        told.append(
            f"needs {least}{needed:,.0f} tokens for {words} ({goal:.4f}, {tokens:,}"
            f" tokens: {needed / tokens:.0%})"
        )
    return f"- Seed {seed}: fused {', and '.join(told)}."


def made_part(found: Mapping[str, Any], seeds: Seeds) -> str:
    """Says with what the figures were made."""
    seconds = [record["seconds"] for arms in seeds.values() for record in arms.values()]
    lines = [
        f"Seeds {', '.join(seeds)}; {len(seconds)} arms in"
        f" {sum(seconds) / 3600:.1f} hours, {statistics.fmean(seconds):.0f} s an arm."
    ]
    return "\n".join([*lines, *map(made_line, found["runs"])])


def made_line(made: Mapping[str, Any]) -> str:
    """Says with what command, machine and versions a run was made."""
    versions = ", ".join(f"{n} {v}" for n, v in sorted(made["versions"].items()))
    return f"- `{made['command']}` on {made['cpu']}, {made['cores']} cores; {versions}"


def page(found: Mapping[str, Any]) -> str:
    """Writes all tables; `found` is what results.json holds."""
    order = found["order"]
    seeds = {
        seed: {name: arms[name] for name in sorted(arms, key=order.index)}
        for seed, arms in sorted(found["seeds"].items(), key=lambda item: int(item[0]))
        if arms
    }
    parts = {
        "Chosen on dev, reported on held-out": chosen_part(seeds, found["sources"]),
        "Controls at the recipe's settings, on held-out": controls_part(seeds),
        "The settings dev chose from": grid_part(seeds),
        "Held-out bits per byte against tokens": tokens_part(seeds),
        "How these figures were made": made_part(found, seeds),
    }
    return "\n\n".join(f"## {head}\n\n{text}" for head, text in parts.items())
