import ast
import itertools
import json
import re
import sysconfig

import pytest

from examples import dialogues
from transforms.functional import splits

COUNT = 120
DOMAINS = ("library", "arithmetic", "units", "programs")
NUMBER = r"-?\d+(?:\.\d+)?"
STATED = re.compile(rf"((?:{NUMBER} [-+*/] )+{NUMBER}) = ({NUMBER})")


@pytest.fixture(scope="module")
def made():
    return list(dialogues.dialogues(3, COUNT))


def answers(made, domain):
    return [
        message["content"]
        for one in made
        if one["domain"] == domain
        for message in one["messages"]
        if message["role"] == "assistant"
    ]


def test_every_domain_has_its_count_and_ids_are_unique(made):
    assert [one["domain"] for one in made[::COUNT]] == list(DOMAINS)
    assert len({one["id"] for one in made}) == len(made) == COUNT * len(DOMAINS)


def test_turns_alternate_behind_at_most_one_system_turn_and_end_with_an_answer(made):
    for one in made:
        roles = [message["role"] for message in one["messages"]]
        turns = roles[roles[0] == "system" :]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
    assert {one["messages"][0]["role"] for one in made} == {"system", "user"}
    assert {len(one["messages"]) // 2 for one in made} >= {1, 2}


@pytest.mark.parametrize("domain", ["arithmetic", "units"])
def test_every_step_of_a_worked_answer_is_true(made, domain):
    steps = [step for text in answers(made, domain) for step in STATED.findall(text)]
    assert len(steps) > COUNT
    for left, right in steps:
        assert eval(left) == pytest.approx(float(right), rel=1e-12)


def test_every_program_gives_the_value_that_is_told_and_so_does_its_loop(made):
    checked = looped = 0
    for one in made:
        if one["domain"] != "programs":
            continue
        own = [m["content"] for m in one["messages"] if m["role"] == "assistant"]
        code = [text.split("```")[1].removeprefix("python") for text in own]
        call, value = re.findall(r"`([^`]+\))` is `([^`]+)`", own[0])[0]
        for program in code:
            names: dict[str, object] = {}
            exec(program, names)
            assert eval(call, names) == ast.literal_eval(value)
        checked, looped = checked + 1, looped + len(code) - 1
    assert checked == COUNT
    assert looped > COUNT // 5


def test_the_same_seed_gives_the_same_and_fewer_are_the_beginning_of_more(made):
    fewer = list(dialogues.dialogues(3, 20))
    groups = itertools.groupby(made, key=lambda one: one["domain"])
    assert fewer == [one for _, group in groups for one in itertools.islice(group, 20)]
    assert fewer != list(dialogues.dialogues(4, 20))


def test_training_keeps_nearly_all_when_near_copies_of_heldout_ones_leave(made):
    texts = {
        one["id"]: "\n".join(
            m["content"] for m in one["messages"] if m["role"] != "system"
        )
        for one in made
    }
    shares = splits.parse_splits("train=.8,heldout=.2")
    placed = {name: splits.assign_split(text, shares) for name, text in texts.items()}
    held = [
        splits.shingles(texts[n]) for n, place in placed.items() if place != "train"
    ]
    index = splits.ProtectedIndex.build(held)
    train = [name for name, place in placed.items() if place == "train"]
    near = [n for n in train if index.overlap(splits.shingles(texts[n])).is_near_copy]
    assert len(held) > 60
    assert len(near) < 0.03 * len(train)


def test_more_than_a_domain_holds_is_refused_with_what_it_holds(tmp_path, monkeypatch):
    source = 'def one():\n    """Says in a long enough sentence what it does."""\n'
    (tmp_path / "only.py").write_text(source)
    paths = {**sysconfig.get_paths(), "stdlib": str(tmp_path)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    with pytest.raises(ValueError, match="at most 1, what 'library' holds, got 5"):
        list(dialogues.dialogues(0, 5))


def test_a_file_holds_a_dialogue_a_line(tmp_path):
    path = str(tmp_path / "made.jsonl")
    assert dialogues.write(path, 1, 2) == 8
    with open(path, encoding="utf-8") as lines:
        assert list(map(json.loads, lines)) == list(dialogues.dialogues(1, 2))
