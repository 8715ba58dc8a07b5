import pytest

from examples import meetings
from examples.information import Figures
from examples.meetings import Participant
from pipelines import prepare, score
from pipelines.prepare import PrepareConfig
from pipelines.score import ScoreConfig
from transforms.functional import coverage


@pytest.fixture(scope="module")
def scored(tmp_path_factory, corpus, models):
    """Windows and what two tiny models say of them."""
    out = str(tmp_path_factory.mktemp("scored"))
    prepare.prepare_corpus(
        PrepareConfig(
            inputs=(corpus[0],),
            output=f"{out}/windows",
            models=tuple(models.values()),
            max_bytes=200,
            splits="fusion=.8,dev=.2",
        )
    )
    for name, model in models.items():
        score.score_windows(
            ScoreConfig(
                windows=f"{out}/windows/fusion",
                model=model,
                output=f"{out}/{name}",
                top_k=6,
                threads=1,
            )
        )
    return out


@pytest.fixture(scope="module")
def participants(scored, models):
    return {name: Participant.read(name, f"{scored}/{name}") for name in models}


@pytest.fixture(scope="module")
def measured(scored, participants, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("maps"))
    return meetings.measure_pair(
        f"{scored}/windows/fusion",
        participants["neox"],
        participants["llama"],
        meetings.STRATEGIES,
        folder,
    )


def test_a_source_that_meets_itself_loses_nothing_under_spans(
    scored, participants, tmp_path
):
    own = participants["llama"]
    found = meetings.measure_pair(
        f"{scored}/windows/fusion", own, own, ["spans"], str(tmp_path)
    )
    spans = Figures(**found["strategies"]["spans"])
    assert spans.coverage == 1
    assert spans.aligned_bits == pytest.approx(spans.source_bits)
    assert set(found["classes"]) == set(coverage.CLASSES.values())
    assert sum(found["classes"].values()) == found["classes"]["whole"]
    assert sum(found["unused"].values()) == 0


def test_every_strategy_is_measured_over_the_same_positions(measured):
    found = [Figures(**each) for each in measured["strategies"].values()]
    assert list(measured["strategies"]) == list(meetings.STRATEGIES)
    assert len({(f.windows, f.positions, f.n_bytes, f.source_bits) for f in found}) == 1
    spans, exact, mined, _ = found
    assert 0 < exact.used <= mined.used < spans.used < spans.positions
    assert all(0 < f.used_bytes <= f.n_bytes for f in found)


def test_positions_are_counted_by_class_and_those_without_any_use(measured):
    classes, unused = measured["classes"], measured["unused"]
    assert all(unused[name] <= classes[name] for name in classes)
    speaking = [coverage.CLASSES[code] for code in coverage.SPEAKING]
    assert sum(unused[name] for name in speaking) == 0
    assert sum(classes[name] for name in speaking) < sum(classes.values())


def test_exact_trades_tokens_of_the_same_bytes_alone(participants, tmp_path):
    source, target = participants["neox"], participants["llama"]
    meeting = meetings.meet(source, target, ["exact"], str(tmp_path))
    pieces = (source.tokenizer.token_bytes, target.tokenizer.token_bytes)
    pairs = [
        (s, t) for s, t in enumerate(meeting.pairs["exact"].partners.ids) if t >= 0
    ]
    assert len(pairs) > 50
    for s, t in pairs:
        assert pieces[0][s] == pieces[1][t]
