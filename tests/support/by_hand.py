"""Training loop by hand with a tortoise, which the callbacks of other trainers must match bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ht_ray.methods import Tortoise

SETTINGS: dict[str, Any] = {"momentum": 0.8, "reset_interval": 5, "reset_unit": "steps", "optimizer_state": "clear"}


def train_by_hand(
    model: nn.Module,
    batches: Iterable[Any],
    loss_of: Callable[[nn.Module, Any], torch.Tensor],
    epochs: int = 3,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    autocast: bool = False,
    **settings: Any,
) -> tuple[nn.Module, Tortoise]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    tortoise = Tortoise(model, **{**SETTINGS, **settings})
    for _ in range(epochs):
        for number, batch in enumerate(batches, start=1):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = loss_of(model, batch)
            (loss / accumulate).backward()
            if number % accumulate == 0:
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
                tortoise.step(optimizer)
        tortoise.end_epoch(optimizer)
    return model, tortoise


def assert_same(callback: Any, model: nn.Module, expected: tuple[nn.Module, Tortoise]) -> None:
    """Assert that a callback's hare and tortoise are those of a loop by hand."""
    hare, tortoise = expected
    assert callback.tortoise is not None
    assert (callback.tortoise.updates, callback.tortoise.resets) == (tortoise.updates, tortoise.resets)
    for name, value in hare.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
        assert torch.equal(callback.tortoise.weights[name], tortoise.weights[name]), name
