import dataclasses
import json
from pathlib import Path

import pytest

from pipelines import prepare
from pipelines.prepare import PrepareConfig
from schemas import documents, files, manifest, plan, windows
from schemas.documents import Document, Fields
from schemas.errors import FusionError, SchemaError
from schemas.windows import Window
from transforms import prepare as cutting
from transforms import tokenizer

SPLITS = "base=.4,fusion=.3,dev=.1,heldout=.2"


def config(corpus: list[str], out: str, **more: object) -> PrepareConfig:
    given = {
        "inputs": tuple(corpus),
        "output": out,
        "max_bytes": 300,
        "id_field": "name",
        "domain_field": "kind",
        "splits": SPLITS,
        "group_windows": 4,
        "slice_bytes": 2000,
        **more,
    }
    return PrepareConfig(**given)  # type: ignore[arg-type]


def read(out: str, split: str) -> list[Window]:
    folder = f"{out}/{split}"
    return list(windows.read_all(folder, plan.read(folder)))


def contents(folder: str) -> dict[str, str]:
    root = Path(folder)
    return {
        str(path.relative_to(root)): files.checksum(str(path))
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def written(corpus: list[str]) -> dict[str, Document]:
    fields = Fields(id="name", domain="kind")
    found = (r for path in corpus for r in documents.read(path, fields, ""))
    return {r.doc_id: r for r in found if isinstance(r, Document)}


def test_the_windows_of_a_document_end_to_end_are_the_document(
    corpus: list[str], out: str, models: dict[str, str]
) -> None:
    made = config(
        corpus, out, models=tuple(models.values()), max_tokens=64, splits="train=1"
    )
    prepare.prepare_corpus(made)
    whole: dict[str, str] = {}
    for window in read(out, "train"):
        assert window.byte_start == len(whole.get(window.doc_id, "").encode())
        whole[window.doc_id] = whole.get(window.doc_id, "") + window.text
    assert whole == {name: d.text for name, d in written(corpus).items()}


def test_every_window_fits_every_tokenizer(
    corpus: list[str], out: str, models: dict[str, str]
) -> None:
    made = config(
        corpus,
        out,
        models=tuple(models.values()),
        max_tokens=64,
        max_bytes=None,
        splits="train=1",
    )
    prepare.prepare_corpus(made)
    own = [tokenizer.load(name) for name in models.values()]
    most = max(
        len(one.encode_window(w.text, w.ends_document).token_ids)
        for w in read(out, "train")
        for one in own
    )
    assert 48 < most <= 64


def test_the_job_equals_the_pure_functions(corpus: list[str], out: str) -> None:
    made = config(corpus, out, splits="train=1")
    prepare.prepare_corpus(made)
    cut = prepare.cut_of(made, {}, prepare.units_of(made))
    found = {w.window_id: w for w in read(out, "train")}
    direct = {
        w.window_id: w
        for document in written(corpus).values()
        for w in cutting.cut_document(document, cut)
    }
    assert found.keys() == direct.keys()
    for name, window in found.items():
        for field in windows.SCHEMA.names:
            assert getattr(window, field) == getattr(direct[name], field)


def test_splits_share_no_document_and_lose_none(corpus: list[str], out: str) -> None:
    made = prepare.prepare_corpus(config(corpus, out))
    ids = {split: {w.doc_id for w in read(out, split)} for split in made}
    left = sum(made["base"].counts[k] for k in made["base"].counts if "left" in k)
    assert sum(map(len, ids.values())) == len(set().union(*ids.values()))
    assert len(set().union(*ids.values())) + left == len(written(corpus))
    assert all(ids.values())


def test_a_near_duplicate_of_a_protected_document_leaves_the_others(
    corpus: list[str], out: str, tmp_path: Path
) -> None:
    prepare.prepare_corpus(config(corpus, out))
    heldout = read(out, "heldout")[0].doc_id
    text = written(corpus)[heldout].text
    copies = [{"text": f"{text}\n{i}", "name": f"copy{i}"} for i in range(40)]
    extra = tmp_path / "copies.jsonl"
    extra.write_text("\n".join(map(json.dumps, copies)))
    again = f"{out}2"
    made = prepare.prepare_corpus(config([*corpus, str(extra)], again))
    kept = {w.doc_id for s in ("base", "fusion") for w in read(again, s)}
    assert not any(name.startswith("copy") for name in kept)
    before = manifest.read(f"{out}/base", windows.STAGE).counts
    gone = made["base"].counts["left_out_near_duplicate"]
    assert gone > before.get("left_out_near_duplicate", 0) + 20


def test_the_same_corpus_gives_the_same_bytes_on_other_runners(
    corpus: list[str], out: str
) -> None:
    prepare.prepare_corpus(config(corpus, out))
    prepare.prepare_corpus(
        config(corpus, f"{out}2"), ["--runner=BundleBasedDirectRunner"]
    )
    assert contents(out) == contents(f"{out}2")


def test_a_finished_corpus_is_left_alone(corpus: list[str], out: str) -> None:
    prepare.prepare_corpus(config(corpus, out))
    before = {p: p.stat().st_mtime_ns for p in Path(out).rglob("*.parquet")}
    prepare.prepare_corpus(config(corpus, out))
    assert before == {p: p.stat().st_mtime_ns for p in Path(out).rglob("*.parquet")}


def test_a_missing_file_is_made_again_and_no_other(corpus: list[str], out: str) -> None:
    prepare.prepare_corpus(config(corpus, out))
    before = contents(out)
    kept = Path(f"{out}/base/part-000000.parquet")
    stamp = kept.stat().st_mtime_ns
    Path(f"{out}/base/part-000001.parquet").unlink()
    Path(f"{out}/base/manifest.json").unlink()
    prepare.prepare_corpus(config(corpus, out))
    assert contents(out) == before
    assert kept.stat().st_mtime_ns == stamp


def test_a_changed_setting_is_refused_by_name_and_taken_on_request(
    corpus: list[str], out: str
) -> None:
    prepare.prepare_corpus(config(corpus, out))
    with pytest.raises(SchemaError, match="max_bytes = 300, and now it is 200"):
        prepare.prepare_corpus(config(corpus, out, max_bytes=200))
    prepare.prepare_corpus(config(corpus, out, max_bytes=200, overwrite=True))
    assert max(len(w.text.encode()) for w in read(out, "base")) <= 200


def test_records_may_name_their_split(tmp_path: Path, out: str) -> None:
    path = tmp_path / "c.jsonl"
    names = ["fusion", "dev", "fusion", "heldout"]
    records = [
        {"text": f"text number {i} of this corpus", "part": name}
        for i, name in enumerate(names)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    given = {
        "split_field": "part",
        "splits": "fusion,dev,heldout",
        "id_field": None,
        "domain_field": None,
    }
    made = prepare.prepare_corpus(config([str(path)], out, **given))
    assert [made[s].counts["documents"] for s in made] == [2, 1, 1]
    fewer = config([str(path)], f"{out}2", **{**given, "splits": "fusion,dev"})
    with pytest.raises(FusionError, match="1 unknown_split"):
        prepare.prepare_corpus(fewer)


def bad_corpus(tmp_path: Path) -> list[str]:
    path = tmp_path / "bad.jsonl"
    lines = [json.dumps({"text": f"document {i} " * 9, "name": str(i)}) for i in "abc"]
    path.write_text("\n".join([*lines, "{", json.dumps({"text": "", "name": "e"})]))
    return [str(path)]


def test_rejects_are_refused_with_their_reasons(tmp_path: Path, out: str) -> None:
    with pytest.raises(FusionError, match=r"2 of 5.*1 empty_text.*1 invalid_json"):
        prepare.prepare_corpus(config(bad_corpus(tmp_path), out, splits="train=1"))


def test_allowed_rejects_are_counted_and_listed_without_text(
    tmp_path: Path, out: str
) -> None:
    made = config(bad_corpus(tmp_path), out, splits="train=1", max_reject_fraction=0.5)
    counts = prepare.prepare_corpus(made)["train"].counts
    assert counts["documents"] == 3
    assert counts["left_out_empty_text"] == counts["left_out_invalid_json"] == 1
    listed = files.read_bytes(f"{out}/rejects/part-000000.jsonl").decode()
    assert len(listed.splitlines()) == 2
    assert "document" not in listed


@pytest.mark.parametrize("content", [b"", b'{"reason": "empty_text"}\n', None])
def test_rejects_of_other_settings_are_not_counted_but_written_anew(
    content: bytes | None, tmp_path: Path, out: str
) -> None:
    # A command of other settings was stopped before it wrote the windows anew, too.
    made = config(bad_corpus(tmp_path), out, splits="train=1", max_reject_fraction=0.5)
    whole = prepare.prepare_corpus(made)["train"]
    listed = Path(out, "rejects/part-000000.jsonl")
    had = listed.read_bytes()
    Path(out, "train", manifest.NAME).unlink()
    listed.unlink()
    if content is not None:
        listed.write_bytes(content)
    assert prepare.prepare_corpus(made)["train"].counts == whole.counts
    assert listed.read_bytes() == had


def test_files_of_one_name_give_documents_of_different_ids(
    tmp_path: Path, out: str
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text(f"text of {folder}")
    inputs = [str(tmp_path / f / "x.txt") for f in ("a", "b")]
    made = config(
        inputs, out, splits="train=1", id_field=None, domain_field=None, max_bytes=99
    )
    prepare.prepare_corpus(made)
    assert {w.doc_id for w in read(out, "train")} == {"0/x.txt:0", "1/x.txt:0"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"inputs": ()}, "inputs"),
        ({"max_bytes": 3}, "max_bytes"),
        ({"max_bytes": None}, "models or max_bytes"),
        ({"slice_bytes": 0}, "slice_bytes"),
        ({"max_reject_fraction": 2.0}, "max_reject_fraction"),
        ({"splits": "a=.5"}, "sum to 1"),
        ({"protected": ("held_out",)}, "base, fusion, dev, heldout.*'held_out'; did"),
        ({"split_field": "part"}, "names alone where split_field"),
    ],
)
def test_a_bad_setting_is_refused_before_any_work(
    more: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(["x.jsonl"], "out", **more)


def test_the_share_of_rejects_is_raised_without_cutting_anew(
    tmp_path: Path, out: str
) -> None:
    refused = config(bad_corpus(tmp_path), out, splits="train=1")
    with pytest.raises(FusionError, match="--max_reject_fraction"):
        prepare.prepare_corpus(refused)
    (part,) = Path(out).glob("train/*.parquet")
    stamp = part.stat().st_mtime_ns
    prepare.prepare_corpus(dataclasses.replace(refused, max_reject_fraction=0.5))
    assert part.stat().st_mtime_ns == stamp


def test_a_smaller_corpus_leaves_nothing_of_the_larger_one(
    corpus: list[str], out: str
) -> None:
    prepare.prepare_corpus(config(corpus, out))
    prepare.prepare_corpus(config(corpus[:1], out, overwrite=True))
    prepare.prepare_corpus(config(corpus[:1], f"{out}2"))
    assert contents(out) == contents(f"{out}2")


def test_shingles_of_files_that_left_the_corpus_are_not_read(
    corpus: list[str], out: str
) -> None:
    prepare.prepare_corpus(config(corpus, out))
    stale = f"{out}/protected/part-000002.parquet"
    files.write_bytes(stale, b"no Parquet file: to read it would be an error")
    prepare.prepare_corpus(config(corpus, out, max_bytes=200, overwrite=True))
    assert not files.exists(stale)


def test_files_that_are_not_ours_are_left_alone(corpus: list[str], out: str) -> None:
    files.write_bytes(f"{out}/base/notes.parquet", b"a user's own")
    prepare.prepare_corpus(config(corpus, out))
    assert files.exists(f"{out}/base/notes.parquet")


def test_no_split_keeps_its_manifest_while_it_is_written_anew(
    corpus: list[str], out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = prepare.prepare_corpus(config(corpus, out))

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare.launch, "run", die)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_corpus(config(corpus, out, max_bytes=200, overwrite=True))
    assert not [split for split in folders if manifest.present(f"{out}/{split}")]


def test_protected_splits_are_those_of_the_usual_names_or_those_named() -> None:
    given = {"splits": "train=.5,validation=.2,heldout=.2,mine=.1"}
    usual = config(["x.jsonl"], "out", **given)
    assert set(usual.protected_splits()) == {"heldout", "validation"}
    named = config(["x.jsonl"], "out", **given, protected=("mine",))
    assert named.protected_splits() == ("mine",)
    assert config(["x.jsonl"], "out", **given, protected=()).protected_splits() == ()


def test_a_corpus_without_documents_is_refused(tmp_path: Path, out: str) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(FusionError, match=r"must hold a document.*empty\.jsonl"):
        prepare.prepare_corpus(config([str(tmp_path / "empty.jsonl")], out))
