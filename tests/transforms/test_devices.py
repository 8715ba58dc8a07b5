import os
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from transforms import devices
from transforms.devices import Claims, Gpu

TWO = [Gpu(index=0, id="GPU-a"), Gpu(index=1, id="GPU-b")]
Process = Callable[[], Claims]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    """Returns what stands for a process of this machine, as locks see one."""
    made = []

    def start() -> Claims:
        made.append(Claims(tmp_path, wait_s=0.0))
        return made[-1]

    yield start
    for claims in made:
        claims.release()


def test_every_process_has_a_gpu_of_its_own(process: Process) -> None:
    assert [process().claim(TWO) for _ in TWO] == [0, 1]


def test_a_process_too_many_is_refused_and_told_who_has_them(process: Process) -> None:
    for _ in TWO:
        process().claim(TWO)
    with pytest.raises(ValueError, match=rf"cuda:1 by process {os.getpid()}.*=2"):
        process().claim(TWO)


def test_where_locks_lie_is_the_same_whatever_folder_is_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("one", "other"):
        monkeypatch.setenv("TMPDIR", f"{tmp_path}/{name}")
        monkeypatch.setattr(tempfile, "tempdir", None)
        (tmp_path / name).mkdir()
        found.append(Claims()._path(TWO[0]))
    assert found[0] == found[1]


def test_a_process_keeps_to_one_gpu_for_all_its_models(process: Process) -> None:
    one = process()
    assert [one.claim(TWO), one.claim(TWO)] == [0, 0]
    assert process().claim(TWO) == 1


def test_a_gpu_that_is_named_is_taken_and_no_other(process: Process) -> None:
    assert process().claim(TWO, 1) == 1
    with pytest.raises(ValueError, match=r"taken: cuda:1 by"):
        process().claim(TWO, 1)
    assert process().claim(TWO, 0) == 0


def test_a_model_over_several_gpus_takes_all_of_them_or_none(process: Process) -> None:
    one, other = process(), process()
    assert other.claim(TWO, 1) == 1
    with pytest.raises(
        ValueError, match=rf"all of the 2 .* taken: cuda:1 by process {os.getpid()};"
    ):
        one.claim_all(TWO)
    assert other.claim(TWO, 0) == 0  # which the first let go of
    other.release()
    one.claim_all(TWO)
    one.claim_all(TWO)  # it has them
    for index in (None, 0, 1):
        with pytest.raises(ValueError, match="are taken"):
            other.claim(TWO, index)
    one.release()
    assert other.claim(TWO) == 0


def test_a_process_keeps_the_gpu_that_it_had_where_others_have_the_rest(
    process: Process,
) -> None:
    one, other = process(), process()
    assert one.claim(TWO) == 0
    assert other.claim(TWO) == 1
    with pytest.raises(ValueError, match="taken: cuda:1 by"):
        one.claim_all(TWO)
    with pytest.raises(ValueError, match="are taken"):
        process().claim(TWO, 0)


def test_a_model_that_is_split_claims_every_gpu_that_its_process_sees(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = process(), process()
    monkeypatch.setattr(devices, "_CLAIMS", one)
    monkeypatch.setattr(devices, "present", lambda: TWO)
    options = {"threads": None, "tune_allocator": False, "every": True}
    gpu = torch.device("cuda")
    assert devices.prepare(gpu, share=True, **options) == gpu
    assert other.claim(TWO, 1) == 1
    other.release()
    assert devices.prepare(torch.device("cpu"), share=False, **options).type == "cpu"
    assert other.claim(TWO, 1) == 1
    other.release()
    assert devices.prepare(gpu, share=False, **options) == gpu
    for index in (0, 1):
        with pytest.raises(ValueError, match="are taken"):
            other.claim(TWO, index)
    devices.release()
    assert other.claim(TWO) == 0


def test_numbers_may_differ_as_a_gpu_is_known_by_its_own_id(process: Process) -> None:
    # The second process was started with CUDA_VISIBLE_DEVICES=1,0.
    turned = [Gpu(index=0, id="GPU-b"), Gpu(index=1, id="GPU-a")]
    assert process().claim(TWO) == 0
    assert process().claim(turned) == 0
    with pytest.raises(ValueError, match="all that it may use are taken"):
        process().claim(TWO[:1])


def test_what_is_let_go_of_is_free_again(process: Process) -> None:
    first = process()
    assert first.claim(TWO[:1]) == 0
    first.release()
    assert process().claim(TWO[:1]) == 0


def test_a_killed_process_leaves_its_gpu_free(tmp_path: Path) -> None:
    ready, done = os.pipe()
    child = os.fork()
    if not child:
        Claims(tmp_path, wait_s=0.0).claim(TWO[:1])
        os.write(done, b"!")
        signal.pause()
    assert os.read(ready, 1) == b"!"
    with pytest.raises(ValueError, match=f"by process {child}"):
        Claims(tmp_path, wait_s=0.0).claim(TWO[:1])
    os.kill(child, signal.SIGKILL)
    heir = Claims(tmp_path, wait_s=60.0)  # the dead may take a moment to let go
    assert heir.claim(TWO[:1]) == 0
    os.waitpid(child, 0)
    heir.release()
    for end in (ready, done):
        os.close(end)


def test_other_users_may_lock_the_same_files(process: Process, tmp_path: Path) -> None:
    process().claim(TWO)
    (made,) = tmp_path.iterdir()
    assert stat.S_IMODE(made.stat().st_mode) == 0o666


def test_a_cpu_is_everybodys() -> None:
    assert devices.claim(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.gpu
def test_a_second_process_does_not_get_this_ones_gpu() -> None:
    gpus = devices.present()
    assert len({gpu.id for gpu in gpus}) == len(gpus) >= 1
    for gpu in gpus:
        found = devices.claim(torch.device("cuda", gpu.index))
        assert found == torch.device("cuda", gpu.index)
    other = Claims(wait_s=0.0)
    with pytest.raises(ValueError, match=f"by process {os.getpid()}"):
        other.claim(gpus)
    devices.release()
    assert other.claim(gpus) == 0
    other.release()
