from collections.abc import Iterator

import pytest
import torch

from train.merge.reading import Reading


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def reading(threads: int) -> Reading:
    return Reading(
        models=(),
        stamps=(),
        lead=0,
        has_base=False,
        threads=threads,
        output="",
        identity="",
    )


@pytest.mark.usefixtures("two_threads")
def test_the_last_of_blocks_that_overlap_puts_torchs_threads_back() -> None:
    first, second = reading(1).open(), reading(1).open()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.get_num_threads() == 1  # the second still works
    second.__exit__(None, None, None)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_torchs_threads_are_put_back_behind_an_error() -> None:
    with pytest.raises(KeyError), reading(1).open():
        raise KeyError
    assert torch.get_num_threads() == 2
