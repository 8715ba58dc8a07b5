"""Reading ahead, the model, and writing behind it: at once, in order, to an end."""

import io
import itertools
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas import scores, windows
from schemas.errors import SchemaError
from schemas.parquet import TableWriter
from schemas.plan import Slice
from schemas.windows import Window
from tests.transforms.scoring import WINDOWS, gpu_is_full, limit_tokens, make
from transforms import score
from transforms.functional import rounding
from transforms.score import ScoreSlices
from transforms.scorer import Scored, ScorerSettings

WAIT_S = 20.0


def groups(n: int) -> list[list[Window]]:
    """Returns groups of windows; one in five is empty."""
    cycle = itertools.cycle(WINDOWS)
    return [[next(cycle) for _ in range(place % 5)] for place in range(n)]


def left() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name in ("ahead", "behind")]


def table(found: Sequence[Scored]) -> pa.Table:
    made = [one for scored in found for one in scored.scores]
    return scores.to_table(rounding.round_scores(made))


@pytest.mark.parametrize("name", ["llama", "mpt"])
@pytest.mark.parametrize("budget", [40, 4096])
def test_groups_stream_out_as_they_score_all_at_once(name: str, budget: int) -> None:
    scorer_ = make(name, batch_tokens=budget)[1]
    given = groups(9)
    found = list(scorer_.stream(given))
    assert [len(one.scores) for one in found] == [len(group) for group in given]
    whole = scorer_.score([window for group in given for window in group])
    assert table(found).equals(table([whole]))
    assert left() == []


def test_a_group_is_out_before_the_last_is_read() -> None:
    scorer_ = make(batch_tokens=40)[1]
    first_is_out = threading.Event()

    def read() -> Iterator[list[Window]]:
        yield from ([window] for window in WINDOWS)
        assert first_is_out.wait(WAIT_S)
        yield WINDOWS[:1]

    found = []
    for scored in scorer_.stream(read()):
        first_is_out.set()
        found.append(scored)
    assert len(found) == len(WINDOWS) + 1


def test_groups_are_read_while_the_model_runs() -> None:
    model, scorer_ = make(batch_tokens=1)
    third_is_read = threading.Event()

    def read() -> Iterator[list[Window]]:
        for place, window in enumerate(WINDOWS):
            if place == 2:
                third_is_read.set()
            yield [window]

    def run(*_: object) -> None:
        assert third_is_read.wait(WAIT_S)

    model.base_model.register_forward_pre_hook(run)
    assert len(list(scorer_.stream(read()))) == len(WINDOWS)


def test_what_fails_while_it_is_read_is_raised_as_it_is() -> None:
    def read() -> Iterator[list[Window]]:
        yield WINDOWS
        raise SchemaError("a row group is corrupt")

    with pytest.raises(SchemaError, match="a row group is corrupt"):
        list(make()[1].stream(read()))
    assert left() == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_model_that_fails_leaves_no_thread(error: type[BaseException]) -> None:
    model, scorer_ = make()

    def fail(*_: object) -> None:
        raise error("stop")

    model.base_model.register_forward_pre_hook(fail)
    with pytest.raises(error, match="stop"):
        list(scorer_.stream([WINDOWS] * 20))
    assert left() == []


def test_a_stream_that_is_closed_leaves_no_thread() -> None:
    stream = make(batch_tokens=40)[1].stream([WINDOWS] * 20)
    next(stream)
    assert left() == ["ahead"]
    stream.close()
    assert left() == []


def test_batches_that_are_halved_are_counted_once() -> None:
    model, scorer_ = make()
    limit_tokens(model, 60, gpu_is_full)
    found = list(scorer_.stream([[window] for window in WINDOWS]))
    whole = scorer_.score(WINDOWS).halved_batches
    assert sum(one.halved_batches for one in found) == whole > 0
    assert [one.scores[0].error for one in found] == [None] * len(WINDOWS)


class Model:
    """Scores nothing, but streams."""

    engine = SimpleNamespace(layout="as it comes", reducer="not at all")

    def __init__(self, found: Iterator[Scored]) -> None:
        self.found = found

    def stream(self, given: Iterator[list[Window]]) -> Generator[Scored, None, None]:
        for _ in given:
            yield next(self.found)


class Tables(TableWriter):
    """Keeps row groups, and does something before it takes each."""

    def __init__(self, write: Callable[[pa.Table], None] = lambda _: None) -> None:
        nowhere = pq.ParquetWriter(io.BytesIO(), WORK.schema)
        super().__init__(writer=nowhere, footer={})
        self.held: list[pa.Table] = []
        self.on_write = write

    def write(self, table: pa.Table) -> None:
        self.on_write(table)
        self.held.append(table)


WORK = ScoreSlices(
    windows="w",
    output="s",
    settings=ScorerSettings(model="m"),
    model="",
    tokenizer="",
    identity="",
)
PIECE = Slice(
    index=0,
    file="w.parquet",
    row_group_start=0,
    row_group_stop=8,
    windows=8,
    text_bytes=0,
    digest="",
)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Scored]:
    """Makes a slice of single windows, scored before; returns the scores."""
    found = list(make()[1].stream([[window] for window in WINDOWS]))
    read = [[window] for window in WINDOWS]
    monkeypatch.setattr(windows, "read_slice", lambda *_: iter(read))
    return found


def use(monkeypatch: pytest.MonkeyPatch, found: Iterator[Scored]) -> None:
    monkeypatch.setattr(score, "shared_scorer", lambda *_: Model(found))


def test_the_model_goes_on_while_a_row_group_is_written(
    made: list[Scored], monkeypatch: pytest.MonkeyPatch
) -> None:
    second_is_scored = threading.Event()

    def run() -> Iterator[Scored]:
        for place, scored in enumerate(made):
            if place == 1:
                second_is_scored.set()
            yield scored

    def write(_: pa.Table) -> None:
        assert second_is_scored.wait(WAIT_S)

    use(monkeypatch, run())
    tables = Tables(write)
    WORK.fill(PIECE, tables)
    assert pa.concat_tables(tables.held).equals(table(made))
    assert tables.footer["windows"] == len(WINDOWS)
    told = tables.footer["way"], tables.footer["reduction"]
    assert told == ("as it comes", "not at all")
    assert left() == []


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_disk_that_is_full_ends_a_slice_with_its_own_error(
    made: list[Scored], monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def write(_: pa.Table) -> None:
        raise error("no space left")

    use(monkeypatch, iter(made))
    tables = Tables(write)
    with pytest.raises(error, match="no space left"):
        WORK.fill(PIECE, tables)
    assert tables.held == []
    assert tables.footer == {}
    assert left() == []


def test_a_corrupt_slice_ends_with_its_own_error(
    made: list[Scored], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> Iterator[list[Window]]:
        yield WINDOWS[:1]
        raise SchemaError("must hold the windows of slice 0")

    monkeypatch.setattr(windows, "read_slice", read)
    use(monkeypatch, iter(made))
    tables = Tables()
    with pytest.raises(SchemaError, match="must hold the windows of slice 0"):
        WORK.fill(PIECE, tables)
    assert tables.footer == {}
    assert left() == []
