import pytest

from pipelines import weights

NAMES = ("big", "small", "target")
ALL = ("big=2", "small=1", "target=0")


def test_a_domain_takes_its_own_weights_where_it_has_any() -> None:
    found = weights.parse(ALL, ("code:big=0.5", "a:b=c:target=1e-1"), NAMES)
    assert found.shares(NAMES) == (2, 1, 0)
    assert found.shares(NAMES[::-1]) == (0, 1, 2)
    assert found.domain_shares(NAMES) == {
        "code": (0.5, 1, 0),
        "a:b=c": (2, 1, 0.1),
    }


@pytest.mark.parametrize(
    ("given", "by_domain", "message"),
    [
        (("big",), (), "weights must be NAME=W .* one of big, small, target"),
        (("large=1",), (), "weights must be NAME=W .* got 'large=1'"),
        (("big=-1",), (), "a number of at least 0, got 'big=-1'"),
        (("big=nan",), (), "a number of at least 0"),
        (("big=inf",), (), "a number of at least 0"),
        (("big=much",), (), "a number of at least 0"),
        (("big=1", "big=2"), (), "big stands twice"),
        (("big=1",), (), "lack small, target; add small=0 to leave it out"),
        (("big=0", "small=0", "target=0"), (), "but all are 0$"),
        (ALL, ("big=1",), "must be DOMAIN:NAME=W, got 'big=1'"),
        (ALL, (":big=1",), "must be DOMAIN:NAME=W"),
        (ALL, ("code:large=1",), "with a candidate's name"),
        (ALL, ("code:big=1", "code:big=1"), "big stands twice"),
        (ALL, ("code:big=0", "code:small=0"), "all are 0 in domain 'code'"),
    ],
)
def test_a_weight_that_cannot_be_meant_is_refused(
    given: tuple[str, ...], by_domain: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        weights.parse(given, by_domain, NAMES)
