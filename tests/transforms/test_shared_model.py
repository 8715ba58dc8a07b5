import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from transforms import score, scorer
from transforms.engine import Ran, Row
from transforms.scorer import Scorer, ScorerSettings

ONE, OTHER = ScorerSettings(model="one"), ScorerSettings(model="other")


class Stub:
    """Stands for what runs a model."""

    width, longest, layout, reducer = 9, None, "none", "nothing"

    def __init__(self, close: Callable[[], None]) -> None:
        self.broken, self.close = False, close

    def run(self, rows: Iterable[Row]) -> Iterator[Ran]:
        yield from ()


class Model(Scorer):
    """Stands for a loaded model of the settings."""

    def __init__(
        self, settings: ScorerSettings, close: Callable[[], None] = lambda: None
    ) -> None:
        self.tokenizer: Any = SimpleNamespace(name=settings.model, fingerprint="tokens")
        self.engine: Any = Stub(close)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Returns a function that says what loads models from now on."""
    monkeypatch.setattr(scorer, "fingerprint_of", lambda _: "model")
    score.unload()
    yield lambda how: monkeypatch.setattr(scorer, "load", how)
    score.unload()


def test_the_threads_of_a_process_share_one_model(load: Callable[[Any], None]) -> None:
    loading = []
    all_ask = threading.Barrier(4)

    def slowly(settings: ScorerSettings) -> Model:
        loading.append(settings)
        return Model(settings)

    def take() -> None:
        all_ask.wait()
        taken.append(score.shared_scorer(ONE, "model", "tokens"))

    load(slowly)
    taken: list[Scorer] = []
    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loading == [ONE]
    assert len({id(model) for model in taken}) == 1
    assert len(taken) == 4


def test_a_process_lets_go_of_a_model_before_it_loads_another(
    load: Callable[[Any], None],
) -> None:
    load(Model)
    first = weakref.ref(score.shared_scorer(ONE, "model", "tokens"))
    assert first() is not None

    def watched(settings: ScorerSettings) -> Model:
        assert first() is None
        return Model(settings)

    load(watched)
    assert score.shared_scorer(OTHER, "model", "tokens") is not None


def test_a_model_that_is_broken_is_closed_before_it_is_loaded_anew(
    load: Callable[[Any], None],
) -> None:
    closed: list[str] = []

    def watched(settings: ScorerSettings) -> Model:
        closed.append("loaded")
        return Model(settings, close=lambda: closed.append("closed"))

    load(watched)
    one: Any = score.shared_scorer(ONE, "model", "tokens")
    assert score.shared_scorer(ONE, "model", "tokens") is one
    one.engine.broken = True
    other = score.shared_scorer(ONE, "model", "tokens")
    assert other is not one
    assert score.shared_scorer(ONE, "model", "tokens") is other
    assert closed == ["loaded", "closed", "loaded"]


def test_a_model_that_is_let_go_of_frees_its_gpu(
    load: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = []
    load(Model)
    score.shared_scorer(ONE, "model", "tokens")
    monkeypatch.setattr(score.devices, "release", lambda: freed.append(True))
    score.unload()
    assert freed == [True]
