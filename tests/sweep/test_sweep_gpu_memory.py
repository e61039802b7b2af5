"""Whether trials that share a GPU have the memory they need, with a GPU that is made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from ht_ray.errors import SettingError
from ht_ray.sweep.worker.gpu_memory import wait_for_gpu_memory

GIB = 1 << 30


def gpu(*free: float, whole: float = 16) -> Callable[[], tuple[int, int]]:
    """A GPU of so many GiB, that has these free, one look after the other; the last for ever."""
    looks = list(free)

    def memory() -> tuple[int, int]:
        return int((looks.pop(0) if len(looks) > 1 else looks[0]) * GIB), int(whole * GIB)

    return memory


def wait(memory: Callable[[], tuple[int, int]], needed: float, share: float, patience: float = 60.0) -> list[str]:
    """Return what was said."""
    said: list[Mapping[str, str]] = []
    wait_for_gpu_memory(needed * GIB, share=share, say=said.append, memory=memory, patience=patience, every=2.0)
    assert {note["event"] for note in said} <= {"waiting"}
    return [note["detail"] for note in said]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def test_a_gpu_with_enough_is_not_waited_for(clock: list[float]) -> None:
    assert wait(gpu(4), needed=4, share=0.25) == []
    assert clock == [0.0]


def test_a_trial_waits_for_the_one_before(clock: list[float]) -> None:
    assert wait(gpu(1, 1, 3, 5), needed=4, share=0.25) == ["the GPU has 1 GiB free; 4 are needed"]
    assert clock == [6.0]


def test_memory_that_is_not_freed_is_a_fault_that_may_pass(clock: list[float]) -> None:
    with pytest.raises(MemoryError, match=r"the GPU has 3 of 16 GiB free, and the trial needs 4: something else uses"):
        wait(gpu(3), needed=4, share=0.25)
    assert clock[0] <= 64


@pytest.mark.parametrize(("share", "needed"), [(0.25, 4.01), (0.5, 8.5), (1 / 3, 5.4), (1, 17), (2, 17)])
def test_more_than_all_can_have_is_refused_at_once(clock: list[float], share: float, needed: float) -> None:
    with pytest.raises(SettingError, match=r"gpu_memory_per_trial = .* trials would share a GPU of 16 GiB"):
        wait(gpu(16), needed=needed, share=share)
    assert clock == [0.0]


@pytest.mark.parametrize(("share", "needed"), [(0.25, 4), (1 / 3, 5.3), (0.3, 5.3), (1, 16), (2, 16), (0.75, 16)])
def test_all_that_all_can_have_is_accepted(share: float, needed: float) -> None:
    assert wait(gpu(16), needed=needed, share=share) == []


def test_without_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="the trial has no GPU"):
        wait_for_gpu_memory(GIB, share=0.5, say=lambda note: None)
