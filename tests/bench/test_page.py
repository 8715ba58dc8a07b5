from examples import results
from tests.bench import __main__ as bench
from tests.bench import rows


def row(name: str, value: float) -> dict[str, object]:
    return rows.at_least(1.0, name, value, "tokens/s", against="-", ratio=None)


def test_a_figure_measured_again_takes_its_place_and_the_others_stay() -> None:
    first, last = results.markers("bench")
    page = bench.page(f"{first}\n{last}", [row("one", 1.0), row("two", 0.5)], [])
    again = bench.page(
        f"head\n{first}\n\n{page}\n\n{last}\ntail", [row("one", 0.25)], ["a"]
    )
    old, new = page.splitlines(), again.splitlines()
    assert [line for line in new if line not in old] == [new[2], new[-1]]
    assert new[-2] == old[-1]
    assert new[-1].startswith("- `python -m tests.bench a` on ")
    assert new[2].startswith("| one | 0.25 |")
    assert new[2].endswith("| **no** |")
    assert [line[:5] for line in new[2:4]] == ["| one", "| two"]
