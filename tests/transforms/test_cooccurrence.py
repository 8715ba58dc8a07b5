import dataclasses
import pickle
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from schemas import cooccurrences, files, manifest, parquet, plan, scores, windows
from schemas.errors import SchemaError
from schemas.plan import Slice
from schemas.scores import Score
from schemas.windows import Window
from transforms import cooccurrence, slices
from transforms.cooccurrence import CountSlices, Scored
from transforms.functional import cooccurrence as pure
from transforms.functional.cooccurrence import Counts, Tokens

TEXTS = ["unbelievable", "a table", "able ables", "un", "ab le", "believable able"]
FINE = ("un", "believ", "able", "a", "b", "l", "e", "s", "t", " ", "i", "v", "u", "n")
COARSE = ("unbeliev", "able", "abl", " able", "un", "believ", *FINE[3:])
FAILED = 3
"""Number of the window that a model failed at."""


def score(window_id: str, text: str, pieces: tuple[str, ...]) -> Score:
    """Scores a text by its longest pieces, with rows of no meaning."""
    if window_id == f"w{FAILED}":
        return scores.failed(window_id, len(text), "too long", 1)
    ids, ends = [0], [0]
    while ends[-1] < len(text):
        fits = [p for p in pieces if text.startswith(p, ends[-1])]
        best = max(fits, key=len)
        ids.append(2 + pieces.index(best))
        ends.append(ends[-1] + len(best))
    ids, ends = [*ids, 1], [*ends, len(text)]
    rows = len(ids) - 1
    return Score(
        window_id=window_id,
        token_ids=np.array(ids, np.int32),
        byte_ends=np.array(ends, np.int32),
        top_ids=np.zeros((rows, 1), np.int32),
        top_logprobs=np.zeros((rows, 1), np.float32),
        logsumexp=np.zeros(rows, np.float32),
        gold_logprob=np.zeros(rows, np.float32),
        nll_nats=0.0,
        n_bytes=len(text),
    )


@pytest.fixture
def work(tmp_path: Path) -> CountSlices:
    """Writes windows in three slices, and what two models say of them."""
    root = str(tmp_path)
    pieces = []
    for index in range(3):
        texts = dict(list(enumerate(TEXTS))[2 * index : 2 * index + 2])
        made = [
            Window(
                window_id=f"w{n}",
                doc_id=f"d{n}",
                text=text,
                byte_start=0,
                ends_document=True,
            )
            for n, text in texts.items()
        ]
        name = f"part-{index:06d}.parquet"
        piece = Slice(
            index=index,
            file=name,
            row_group_start=0,
            row_group_stop=1,
            windows=2,
            text_bytes=sum(map(len, texts.values())),
            digest=windows.slice_digest([windows.ids_digest(f"w{n}" for n in texts)]),
        )
        pieces.append(piece)
        with parquet.writer(
            f"{root}/windows/{name}", windows.SCHEMA, {"fingerprint": "f"}
        ) as tables:
            tables.write(windows.to_table(made))
        for model, vocabulary in (("fine", FINE), ("coarse", COARSE)):
            footer = {"fingerprint": "f", "digest": piece.digest, "k": 1}
            path = f"{root}/{model}/{piece.output}"
            with parquet.writer(path, scores.SCHEMA, footer) as tables:
                rows = [score(w.window_id, w.text, vocabulary) for w in made]
                tables.write(scores.to_table(rows))
    plan.write(f"{root}/windows", pieces)
    return CountSlices(
        windows=f"{root}/windows",
        source=Scored(
            scores=f"{root}/fine",
            tokenizer="fine",
            size=2 + len(FINE),
            controls=(0, 1),
        ),
        target=Scored(
            scores=f"{root}/coarse",
            tokenizer="coarse",
            size=2 + len(COARSE),
            controls=(0, 1),
        ),
        output=f"{root}/counts",
        identity="identity",
    )


def counted_directly() -> Counts:
    keys = []
    for n, text in enumerate(TEXTS):
        sides = [score(f"w{n}", text, pieces) for pieces in (FINE, COARSE)]
        if n == FAILED:
            continue
        source, target = (
            Tokens(
                token_ids=one.token_ids,
                byte_ends=one.byte_ends,
                controls=np.arange(2 + len(pieces)) < 2,
            )
            for one, pieces in zip(sides, (FINE, COARSE), strict=True)
        )
        keys.append(pure.find_pairs(text.encode(), source, target))
    return pure.tally(keys)


def run(work: CountSlices) -> None:
    with beam.Pipeline("FnApiRunner") as root:
        _ = root | slices.DoSlices(work.windows, work)


def names(work: CountSlices) -> list[str]:
    return files.names(work.output, ".parquet")


def assert_counted(work: CountSlices) -> None:
    found, wanted = (
        cooccurrence.read_counts(work.output, names(work)),
        counted_directly(),
    )
    assert wanted.counts.size > 10
    for name in ("source_ids", "target_ids", "counts"):
        assert_array_equal(getattr(found, name), getattr(wanted, name))


def test_a_job_counts_what_the_pure_functions_count(work: CountSlices) -> None:
    run(work)
    assert_counted(work)


def test_a_repeated_slice_counts_nothing_twice(work: CountSlices) -> None:
    run(work)
    before = files.stamps(work.output)
    first = plan.read(work.windows)[0]
    assert not slices.do_slice(work, first)
    assert files.stamps(work.output) == before
    again = dataclasses.replace(work, identity="other", overwrite=True)
    for _ in range(2):  # an attempt that is lost, and its repetition
        slices.do_slice(again, first)
    assert_counted(work)


def test_a_slice_that_is_made_again_has_the_same_bytes(work: CountSlices) -> None:
    path = f"{work.output}/slice-000000.parquet"
    contents = []
    for _ in range(2):
        slices.do_slice(work, plan.read(work.windows)[0])
        contents.append(files.read_bytes(path))
        files.remove_tree(path)
    assert contents[0] == contents[1]


def test_windows_that_failed_are_left_out_and_told(work: CountSlices) -> None:
    run(work)
    footer = parquet.footer(f"{work.output}/slice-000001.parquet")
    assert (footer["windows"], footer["failed"]) == (1, 1)
    assert footer["tokens"] > 0


def test_counts_of_other_inputs_are_refused(work: CountSlices) -> None:
    run(work)
    other = dataclasses.replace(work, identity="other")
    with pytest.raises(SchemaError, match="--overwrite"):
        slices.do_slice(other, plan.read(work.windows)[0])


def test_scores_of_other_windows_are_refused(work: CountSlices) -> None:
    first, second, _ = plan.read(work.windows)
    path = f"{work.source.scores}/{first.output}"
    other = files.read_bytes(f"{work.source.scores}/{second.output}")
    files.write_bytes(path, other)
    with pytest.raises(SchemaError, match="must hold the windows of slice 0"):
        slices.do_slice(work, first)
    footer = {"fingerprint": "f", "digest": first.digest, "k": 1}
    with parquet.writer(path, scores.SCHEMA, footer) as tables:
        tables.write(scores.to_table([score(n, "un", FINE) for n in ("w1", "w0")]))
    with pytest.raises(SchemaError, match=r"must hold window w0 .* holds w1"):
        slices.do_slice(work, first)


def test_the_work_pickles_and_its_columns_are_those_of_the_schema(
    work: CountSlices,
) -> None:
    assert pickle.loads(pickle.dumps(work)) == work
    assert work.schema is cooccurrences.SCHEMA
    assert not manifest.present(work.output)
