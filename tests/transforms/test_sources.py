from pathlib import Path

import numpy as np
import pytest

from schemas import parquet, plan, scores, windows
from schemas.errors import SchemaError
from schemas.plan import Slice
from schemas.scores import Score
from schemas.windows import Window
from transforms import joined, sources
from transforms.functional import weigh
from transforms.sources import Source

DOCUMENTS = [1, 3, 2, 9, 1, 4]  # windows of each; the fourth reaches over five slices
GROUP, SLICE_GROUPS = 1, 2


def cut(documents: list[int], start: int) -> list[Window]:
    made = []
    for number, count in enumerate(documents, start):
        for place in range(count):
            made.append(
                Window(
                    window_id=f"{number}.{place}",
                    doc_id="the same for all",
                    text="abc",
                    byte_start=3 * place,
                    ends_document=place == count - 1,
                )
            )
    return made


def score_of(rng: np.random.Generator, window: Window) -> Score:
    n_bytes = 0 if window.window_id.endswith("00.0") else 3  # nothing of it counts
    if rng.random() < 0.2:
        return scores.failed(window.window_id, n_bytes, "bad", 2)
    return Score(
        window_id=window.window_id,
        token_ids=np.arange(4, dtype=np.int32),
        byte_ends=np.arange(4, dtype=np.int32),
        top_ids=np.zeros((3, 2), np.int32),
        top_logprobs=np.zeros((3, 2), np.float32),
        logsumexp=np.zeros(3, np.float32),
        gold_logprob=np.zeros(3, np.float32),
        nll_nats=float(rng.uniform(1, 9)),
        n_bytes=n_bytes,
    )


class Folders:
    """Windows in two files and slices of two row groups, and two sources' scores."""

    def __init__(self, root: Path) -> None:
        self.windows, self.slices = f"{root}/windows", []
        self.sources = [
            Source(name=n, scores=f"{root}/{n}", tokenizer="", eos_id=None)
            for n in ("one", "two")
        ]
        self.all: list[Window] = []
        self.said: list[list[Score]] = []
        rng = np.random.default_rng(4)
        for file, documents in enumerate((DOCUMENTS, DOCUMENTS[::-1])):
            self._write(rng, f"part-{file}.parquet", cut(documents, 100 * file + 100))
        plan.write(self.windows, self.slices)

    def _write(self, rng: np.random.Generator, name: str, made: list[Window]) -> None:
        groups = [made[i : i + GROUP] for i in range(0, len(made), GROUP)]
        path = f"{self.windows}/{name}"
        with parquet.writer(path, windows.SCHEMA, {"fingerprint": ""}) as tables:
            for group in groups:
                tables.write(windows.to_table(group))
        for at in range(0, len(groups), SLICE_GROUPS):
            own = groups[at : at + SLICE_GROUPS]
            flat = [window for group in own for window in group]
            digests = [windows.ids_digest(w.window_id for w in g) for g in own]
            piece = Slice(
                index=len(self.slices),
                file=name,
                row_group_start=at,
                row_group_stop=at + len(own),
                windows=len(flat),
                text_bytes=3 * len(flat),
                digest=windows.slice_digest(digests),
            )
            self.slices.append(piece)
            self.all += flat
            said = [[score_of(rng, w) for _ in self.sources] for w in flat]
            self.said += said
            for source, column in zip(
                self.sources, zip(*said, strict=True), strict=True
            ):
                self._score(source, piece, list(column))

    def _score(self, source: Source, piece: Slice, column: list[Score]) -> None:
        path, footer = f"{source.scores}/{piece.output}", {"k": 2}
        with parquet.writer(
            path,
            scores.SCHEMA,
            {**footer, "digest": piece.digest},
            **scores.WRITER_OPTIONS,
        ) as tables:
            tables.write(scores.to_table(column))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("folders"))


def test_every_slice_alone_finds_what_whole_documents_cost(folders: Folders) -> None:
    costs = [
        sources.document_costs(folders.windows, folders.sources, piece, "x")
        for piece in folders.slices
    ]
    assert [len(c) for c in costs] == [piece.windows for piece in folders.slices]
    found = np.concatenate(costs)
    starts = [i for i, w in enumerate(folders.all) if w.byte_start == 0]
    for start, stop in zip(starts, [*starts[1:], len(folders.all)], strict=True):
        for s in range(len(folders.sources)):
            own = [folders.said[i][s] for i in range(start, stop)]
            scored = [score for score in own if score.nll_nats is not None]
            wanted = weigh.bits_per_byte(
                float(sum(score.nll_nats or 0 for score in scored)),
                sum(score.n_bytes for score in scored),
            )
            for i, score in zip(range(start, stop), own, strict=True):
                cost = np.nan if score.error else wanted
                np.testing.assert_allclose(found[i, s], cost)
    assert np.isnan(found).any()
    assert np.isfinite(found).any()


def test_only_the_slices_of_the_same_documents_are_read(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = np.cumsum([window.byte_start == 0 for window in folders.all])
    sizes = [piece.windows for piece in folders.slices]
    place = np.repeat(np.arange(len(sizes)), sizes)
    read: list[int] = []
    spent = sources._spent

    def noted(folder: str, models: list[Source], piece: Slice) -> object:
        read.append(piece.index)
        return spent(folder, models, piece)

    monkeypatch.setattr(sources, "_spent", noted)
    most = 0
    for piece in folders.slices:
        read.clear()
        sources.document_costs(folders.windows, folders.sources, piece, "x")
        own = document[place == piece.index]
        assert sorted(read) == np.unique(place[np.isin(document, own)]).tolist()
        most = max(most, len(read))
    assert most >= 5


def test_scores_of_other_windows_are_refused(folders: Folders, tmp_path: Path) -> None:
    other = Source(name="other", scores=str(tmp_path), tokenizer="", eos_id=None)
    first, second = folders.slices[:2]
    folders._score(other, second, [row[0] for row in folders.said[:2]])
    (tmp_path / second.output).rename(tmp_path / first.output)
    with pytest.raises(SchemaError, match="must hold the windows of slice 0"):
        sources.document_costs(folders.windows, [other], first, "x")
    with pytest.raises(SchemaError, match="must hold the windows of slice 0"):
        list(joined.read(folders.windows, first, [other.scores]))


def test_a_score_of_another_window_is_refused_where_it_stands(
    folders: Folders, tmp_path: Path
) -> None:
    other = Source(name="other", scores=str(tmp_path), tokenizer="", eos_id=None)
    first = folders.slices[0]
    folders._score(other, first, [row[0] for row in folders.said[:2]][::-1])
    with pytest.raises(SchemaError, match="where the plan does"):
        list(joined.read(folders.windows, first, [other.scores]))
