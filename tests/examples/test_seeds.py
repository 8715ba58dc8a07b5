import argparse
from pathlib import Path

import pytest

from examples import results, seeds

ROOT = Path(__file__).parents[2]
SIZES = ("full", "tiny")


def parse(*words: str) -> argparse.Namespace:
    return seeds.parse(words, "examples.table7", "told", SIZES, {"full": "table7"})


def test_the_page_is_written_with_all_seeds_or_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    page = tmp_path / "page.md"
    page.write_text("\n".join(results.markers("table7")))
    assert parse().page == seeds.PAGE
    assert parse("--seeds", "0").page is None  # it would take the place of three
    assert parse("--size", "tiny").page is None
    assert parse("--seeds", "0", "--page", str(page)).page == str(page)


def test_what_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="no page of --size tiny"):
        parse("--size", "tiny", "--page", seeds.PAGE)
    with pytest.raises(SystemExit, match=r"must be there already, got .*none\.md"):
        parse("--page", str(tmp_path / "none.md"))
    (tmp_path / "page.md").write_text("no place for it")
    with pytest.raises(SystemExit, match=r"page\.md must hold .*table7: begin"):
        parse("--page", str(tmp_path / "page.md"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="from the repository's folder"):
        parse()


def test_an_example_that_runs_programs_must_be_allowed_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    given = "examples.reasoning", "told", SIZES, {}
    with pytest.raises(SystemExit, match="pass --run_code, in a container at best"):
        seeds.parse([], *given, runs_code=True)
    assert seeds.parse(["--run_code"], *given, runs_code=True).size == "full"
    with pytest.raises(SystemExit):
        parse("--run_code")


def test_a_rate_at_an_edge_of_those_tried_is_told_as_such() -> None:
    costs = {"0.001": 2.0, "0.002": 1.5, "0.004": 1.75}
    arms = {
        "fused": {"chosen": 0.002, "dev_bits_per_byte": costs},
        "clm": {"chosen": 0.004, "dev_bits_per_byte": costs},
    }
    (line,) = seeds.tell_rates({"0": arms})
    assert "fused 0.002 of 0.001 (2.0000), 0.002 (1.5000)" in line
    assert "clm 0.004 (an edge) of 0.001" in line
