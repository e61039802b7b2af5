"""Torch's settings for a block."""

from __future__ import annotations

import pytest
import torch

from ht_ray.errors import SettingError
from ht_ray.numerics import numerics


def present() -> tuple[bool, ...]:
    cudnn = torch.backends.cudnn
    return (
        cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
    )


@pytest.mark.parametrize(
    ("settings", "inside"),
    [
        ({}, (True, False, False, False)),
        ({"tf32": "none"}, (False, False, False, False)),
        ({"tf32": "all", "benchmark": True}, (True, True, True, False)),
        ({"deterministic": True}, (True, False, False, True)),
    ],
)
def test_settings_hold_inside_and_are_put_back(settings, inside, monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = present()
    with pytest.raises(ZeroDivisionError), numerics(**settings):
        assert present() == inside
        with numerics(tf32="none"):
            assert present()[0] is False
        assert present() == inside
        raise ZeroDivisionError
    assert present() == before


def test_defaults_are_those_of_torch() -> None:
    before = present()
    with numerics():
        assert present() == before


def test_determinism_refuses_what_has_none(monkeypatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    values = torch.zeros(2)
    with numerics(deterministic=True), pytest.raises(RuntimeError, match="deterministic"):
        values.put_(torch.tensor([0, 0]), torch.ones(2))


def test_what_cannot_be_is_refused(monkeypatch) -> None:
    with (
        pytest.raises(SettingError, match=r"tf32 = 'al': accepted are 'none'.*Did you mean 'all'"),
        numerics(tf32="al"),
    ):  # type: ignore[arg-type]
        pass
    with pytest.raises(SettingError, match="one of the two"), numerics(benchmark=True, deterministic=True):
        pass
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = present()
    with pytest.raises(SettingError, match="CUBLAS_WORKSPACE_CONFIG = None"), numerics(deterministic=True):
        pass
    assert present() == before
