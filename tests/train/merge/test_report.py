import pytest

from schemas.weights import Place
from train.merge import plan, report
from train.merge.plan import Tensor


def place(dtype: str, rows: int = 10) -> Place:
    return Place(file="f", start=0, stop=0, dtype=dtype, shape=(rows, 100))


def tensor(method: str, *places: Place | None, **more: bool) -> Tensor:
    return Tensor(
        key="w", shape=(10, 100), dtype="BF16", layer=None, how=plan.MERGE,
        method=method, places=places, **more,  # type: ignore[arg-type]
    )  # fmt: skip


BF16 = place("BF16")


@pytest.mark.parametrize(
    ("made", "tensors"),
    [
        (tensor("linear", BF16, BF16, None), 2 + 1),
        (tensor("linear", *[BF16] * 4), 4 + 1),
        (tensor("sce", BF16, BF16, BF16, with_base=True), 3 + 2 + 2.5),
        (tensor("sce", *[BF16] * 5, with_base=True), 5 + 4 + 2.5),
        (tensor("linear", BF16, BF16, by_token=True), 2 + 1 + 1),
        (tensor("linear", place("F64"), BF16), 2 * (1 + 1 + 1) + 1),
    ],
)
def test_memory_is_what_is_read_and_what_the_method_makes_of_it(
    made: Tensor, tensors: float
) -> None:
    assert report.needed_bytes(made) == pytest.approx(1.1 * tensors * 4 * 1000)


def test_of_a_tensor_with_more_rows_elsewhere_those_count() -> None:
    longer = tensor("linear", BF16, place("F32", rows=30))
    assert report.needed_bytes(longer) == pytest.approx(1.1 * (10 + 30 + 30) * 400)


def test_what_is_taken_is_held_once_as_it_is_read_and_once_as_it_is_stored() -> None:
    taken = Tensor(
        key="w", shape=(10, 100), dtype="BF16", layer=None, how=plan.TAKE,
        places=(None, BF16),
    )  # fmt: skip
    assert report.needed_bytes(taken) == pytest.approx(1.1 * 2 * 4000)
