import dataclasses
from pathlib import Path

import duckdb
import numpy as np
import pandas
import polars
import pytest

from schemas import files, manifest, parquet, plan, scores, windows
from schemas.errors import SchemaError
from schemas.manifest import FileEntry, Manifest
from schemas.plan import Slice
from schemas.scores import Score
from schemas.windows import Window

RNG = np.random.default_rng(0)


def window(name: str, **more: object) -> Window:
    fields = {"doc_id": "d", "text": "hé", "byte_start": 0, "ends_document": False}
    return Window(window_id=name, **{**fields, **more})  # type: ignore[arg-type]


def score(name: str, n: int, k: int = 4) -> Score:
    return Score(
        window_id=name,
        token_ids=RNG.integers(0, 99, n).astype(np.int32),
        byte_ends=np.arange(n, dtype=np.int32),
        top_ids=RNG.integers(0, 99, (n - 1, k)).astype(np.int32),
        top_logprobs=-RNG.random((n - 1, k)).astype(np.float32),
        logsumexp=RNG.random(n - 1).astype(np.float32),
        gold_logprob=-RNG.random(n - 1).astype(np.float32),
        nll_nats=1.5,
        n_bytes=n - 1,
    )


def drawn(one: Score, r: int = 3) -> Score:
    ids = RNG.integers(-1, 99, (len(one.top_ids), r)).astype(np.int32)
    return dataclasses.replace(one, sampled_ids=ids)


def write(path: str, groups: list[list[Score]], **footer: object) -> None:
    schema = scores.schema_of(footer.get("tail_samples", 0))  # type: ignore[arg-type]
    options = scores.options_of(schema)
    with parquet.writer(path, schema, footer, **options) as tables:
        for group in groups:
            tables.write(scores.to_table(group, schema))


def test_windows_survive_a_table() -> None:
    made = [window("a"), window("b", domain="x", loss_spans=(0, 1), ends_document=True)]
    again = windows.from_table(windows.to_table(made))
    for one, other in zip(made, again, strict=True):
        for name in windows.SCHEMA.names:
            assert getattr(one, name) == getattr(other, name)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(SchemaError, match="must hold text"):
        window("a", text="")


def test_scores_survive_a_file_row_for_row(tmp_path: Path) -> None:
    path = f"{tmp_path}/s.parquet"
    groups = [[score("a", 5), scores.failed("b", 7, "bad", 4)], [score("c", 2)]]
    write(path, groups, k=4)
    for group, again in zip(groups, scores.read(path), strict=True):
        for one, other in zip(group, again, strict=True):
            for name in ("window_id", "nll_nats", "n_bytes", "error"):
                assert getattr(one, name) == getattr(other, name)
            for name in ("token_ids", "byte_ends", "top_ids", "top_logprobs"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_drawn_ids_survive_a_file_row_for_row(tmp_path: Path) -> None:
    path = f"{tmp_path}/s.parquet"
    fails = scores.failed("b", 7, "bad", 4, 3)
    group = [drawn(score("a", 5)), fails, drawn(score("c", 2))]
    write(path, [group], k=4, tail_samples=3)
    (again,) = scores.read(path)
    for one, other in zip(group, again, strict=True):
        np.testing.assert_array_equal(one.sampled_ids, other.sampled_ids)
        np.testing.assert_array_equal(one.top_ids, other.top_ids)
    rows = duckdb.sql(f"select sampled_ids from '{path}'").fetchall()
    assert rows[0][0] == group[0].sampled_ids.ravel().tolist()
    assert rows[1][0] is None


def test_without_draws_there_is_no_column_for_them(tmp_path: Path) -> None:
    path = f"{tmp_path}/s.parquet"
    write(path, [[score("a", 5)]], k=4)
    assert polars.read_parquet(path).columns == scores.SCHEMA.names
    ((one,),) = scores.read(path)
    assert one.sampled_ids is None


def test_a_file_that_lacks_the_draws_it_states_is_refused(tmp_path: Path) -> None:
    path = f"{tmp_path}/s.parquet"
    with parquet.writer(path, scores.SCHEMA, {"k": 4, "tail_samples": 3}) as tables:
        tables.write(scores.to_table([score("a", 5)]))
    with pytest.raises(SchemaError, match="'sampled_ids'"):
        list(scores.read(path))


def test_duckdb_polars_and_pandas_read_scores_as_plain_columns(tmp_path: Path):
    path = f"{tmp_path}/s.parquet"
    one = score("a", 5)
    write(path, [[one, scores.failed("b", 7, "bad", 4)]], k=4)
    rows = duckdb.sql(
        f"select window_id, top_ids, gold_logprob, error from '{path}' order by 1"
    ).fetchall()
    assert rows[0][1] == one.top_ids.ravel().tolist()
    assert rows[0][2] == one.gold_logprob.tolist()
    assert rows[1] == ("b", None, None, "bad")
    frame = polars.read_parquet(path)
    assert frame["top_logprobs"][0].to_list() == one.top_logprobs.ravel().tolist()
    plain = pandas.read_parquet(path)
    for name in ("token_ids", "byte_ends", "top_ids", "logsumexp"):
        wanted = getattr(one, name).ravel().tolist()
        assert plain[name][0].tolist() == wanted
        assert frame[name][0].to_list() == wanted
        ((listed,),) = duckdb.sql(
            f"select {name} from '{path}' where window_id = 'a'"
        ).fetchall()
        assert listed == wanted


def test_files_of_other_encodings_are_read_all_the_same(tmp_path: Path) -> None:
    path = f"{tmp_path}/s.parquet"
    one = score("a", 5)
    split = {
        f"{name}.list.element": "BYTE_STREAM_SPLIT"
        for name in ("token_ids", "byte_ends", "top_ids", "top_logprobs")
    }
    options = {"use_dictionary": ["error"], "column_encoding": split}
    with parquet.writer(path, scores.SCHEMA, {"k": 4}, **options) as tables:
        tables.write(scores.to_table([one]))
    ((again,),) = scores.read(path)
    for name in ("token_ids", "byte_ends", "top_ids", "top_logprobs"):
        np.testing.assert_array_equal(getattr(again, name), getattr(one, name))


def test_a_score_whose_arrays_disagree_is_refused() -> None:
    good = score("a", 5)
    with pytest.raises(SchemaError, match="3 rows"):
        Score(
            **{
                **{n: getattr(good, n) for n in scores.SCHEMA.names},
                "token_ids": good.token_ids[:-1],
                "byte_ends": good.byte_ends[:-1],
            }
        )


def test_bits_per_byte_of_a_known_cost() -> None:
    assert score("a", 5).bits_per_byte == pytest.approx(1.5 / np.log(2) / 4)
    assert np.isnan(scores.failed("a", 3, "bad", 4).bits_per_byte)


def test_work_is_done_only_under_its_own_fingerprint(tmp_path: Path) -> None:
    path = f"{tmp_path}/s.parquet"
    assert not parquet.done(path, "x")
    write(path, [[score("a", 3)]], k=4, fingerprint="x")
    assert parquet.done(path, "x")
    with pytest.raises(SchemaError, match=r"other settings.*--overwrite"):
        parquet.done(path, "y")
    assert not parquet.done(path, "y", overwrite=True)


@pytest.mark.parametrize("place", [20, -30])
def test_a_corrupt_file_is_an_error_that_names_it(place: int, tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write(str(path), [[score("a", 200)]], k=4)
    content = bytearray(path.read_bytes())
    for offset in range(24):
        content[place + offset] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(SchemaError, match=r"s\.parquet"):
        list(scores.read(str(path)))


def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    write(str(path), [[score("a", 200)]], k=4)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SchemaError, match=r"s\.parquet"):
        list(scores.read(str(path)))


def test_a_foreign_schema_is_an_error_that_names_the_column(tmp_path: Path) -> None:
    path = f"{tmp_path}/w.parquet"
    with parquet.writer(path, windows.SCHEMA, {"k": 4}) as tables:
        tables.write(windows.to_table([window("a")]))
    with pytest.raises(SchemaError, match="'token_ids'"):
        list(scores.read(path))


def test_the_writers_entry_is_the_files(tmp_path: Path) -> None:
    path = f"{tmp_path}/w.parquet"
    with parquet.writer(path, windows.SCHEMA, {"tokens": 7}) as tables:
        tables.write(windows.to_table([window("a"), window("b")]))
    assert tables.entry == FileEntry(
        name="w.parquet",
        rows=2,
        tokens=7,
        bytes=files.size(path),
        sha256=files.checksum(path),
    )


def piece(**more: object) -> Slice:
    digest = windows.slice_digest([windows.ids_digest(["a", "b"])])
    fields = {
        "index": 0,
        "file": "w.parquet",
        "row_group_start": 0,
        "row_group_stop": 1,
        "windows": 2,
        "text_bytes": 6,
        "digest": digest,
    }
    return Slice(**{**fields, **more})  # type: ignore[arg-type]


def test_a_slice_reads_its_windows_and_refuses_others(tmp_path: Path) -> None:
    with parquet.writer(f"{tmp_path}/w.parquet", windows.SCHEMA, {}) as tables:
        tables.write(windows.to_table([window("a"), window("b")]))
    (group,) = windows.read_slice(str(tmp_path), piece())
    assert [w.window_id for w in group] == ["a", "b"]
    with pytest.raises(SchemaError, match="slice 0"):
        list(windows.read_slice(str(tmp_path), piece(digest="other")))


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    slices = [piece(), piece(index=1)]
    plan.write(str(tmp_path), slices)
    assert plan.read(str(tmp_path)) == slices
    with pytest.raises(SchemaError, match=r"plan\.jsonl"):
        plan.from_line('{"index": 0}')


@pytest.mark.parametrize(
    ("chosen", "indices"), [(None, [0, 1, 2]), ("1", [1]), ("1-2", [1, 2])]
)
def test_slices_are_chosen_by_an_inclusive_range(
    chosen: str | None, indices: list[int]
) -> None:
    slices = [piece(index=i) for i in range(3)]
    assert [s.index for s in plan.select(slices, chosen)] == indices


@pytest.mark.parametrize("chosen", ["x", "2-1", "0-3", "-1", "1-"])
def test_a_range_outside_the_plan_is_refused(chosen: str) -> None:
    with pytest.raises(ValueError, match="--slices"):
        plan.select([piece(index=i) for i in range(3)], chosen)


def made(**more: object) -> Manifest:
    fields = {
        "stage": "scores",
        "fingerprint": "f",
        "settings": {"top_k": 10},
        "inputs": {"model": "m"},
        "origins": {},
        "counts": {"windows": 2},
        "files": (FileEntry(name="a", rows=1, tokens=None, bytes=2, sha256="s"),),
        "code_version": "0",
    }
    return Manifest(**{**fields, **more})  # type: ignore[arg-type]


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    manifest.write(str(tmp_path), made())
    assert manifest.read(str(tmp_path), "scores") == made()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"schema_version": 99}, "99"),
        ({"stage": "fused"}, "'fused'"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_foreign_manifest_is_refused_by_name(
    edit: dict[str, object], message: str, tmp_path: Path
) -> None:
    manifest.write(str(tmp_path), made())
    path = f"{tmp_path}/manifest.json"
    files.write_json(path, {**files.read_json(path), **edit})
    with pytest.raises(SchemaError, match=message):
        manifest.read(str(tmp_path), "scores")


def test_an_unfinished_folder_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="repeated command goes on"):
        manifest.read(str(tmp_path), "scores")


def test_other_settings_are_refused_by_key(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"top_k = 10, and now it is 11.*--overwrite"):
        manifest.refuse_other("here", made(), {"top_k": 11, "model": "m"})


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"top_k": 10, "model": "m", "new": None}, "new = not set, and now it is None"),
        ({"model": "m"}, "top_k = 10, and now it is not set"),
        ({"top_k": 10, "model": "m"}, "another format of the same settings"),
    ],
)
def test_what_is_to_be_refused_is_refused_whatever_differs(
    wanted: dict[str, object], message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        manifest.refuse_other("here", made(), wanted)


def noted(folder: str, content: bytes, **more: object) -> FileEntry:
    files.write_bytes(f"{folder}/a", content)
    fields = {"name": "a", "rows": 1, "tokens": None, "sha256": "s" * 16}
    entry = FileEntry(**{**fields, "bytes": len(content), **more})  # type: ignore[arg-type]
    manifest.note_entry(folder, entry, "work")
    return entry


@pytest.mark.parametrize("base", ["memory://notes", "LOCAL"])
def test_a_note_describes_the_file_until_the_notes_are_dropped(
    base: str, tmp_path: Path
) -> None:
    folder = str(tmp_path) if base == "LOCAL" else base
    entry = noted(folder, b"abc")
    assert manifest.noted_entries(folder, {"a": "work"}) == {"a": entry}
    manifest.forget_entries(folder)
    assert manifest.noted_entries(folder, {"a": "work"}) == {}
    manifest.forget_entries(folder)


@pytest.mark.parametrize(
    ("fingerprint", "more"),
    [("other", {}), ("work", {"bytes": 4}), ("work", {"sha256": "t" * 16})],
    ids=["of other work", "of another size", "of two attempts"],
)
def test_a_note_in_doubt_is_not_believed(
    fingerprint: str, more: dict[str, object], tmp_path: Path
) -> None:
    folder = str(tmp_path)
    if "sha256" in more:
        noted(folder, b"abd")
    noted(folder, b"abc", **more)
    assert manifest.noted_entries(folder, {"a": fingerprint}) == {}


def test_a_note_that_another_command_removes_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted(str(tmp_path), b"abc")
    listed = files.names(f"{tmp_path}/.tmp/entries")
    manifest.forget_entries(str(tmp_path))
    monkeypatch.setattr(files, "names", lambda folder: listed)
    assert manifest.noted_entries(str(tmp_path), {"a": "work"}) == {}


def test_a_note_that_comes_after_the_end_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.write_json

    def finished_meanwhile(path: str, value: object) -> None:
        with files.publish(path) as file:
            manifest.forget_entries(str(tmp_path))
            file.write(b"{}")
        write(path, value)

    monkeypatch.setattr(files, "write_json", finished_meanwhile)
    noted(str(tmp_path), b"abc")


def test_an_empty_plan_has_no_slices_to_choose() -> None:
    assert plan.select([], None) == []
    with pytest.raises(ValueError, match=r"no document fell into this split"):
        plan.select([], "0-0")
