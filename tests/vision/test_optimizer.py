"""The optimiser is the paper's: AdamW with a linear warm-up, over what can be trained."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ht_ray.mechanisms import SettingError
from ht_ray.vision import TrainingConfig, make_optimizer, set_learning_rate, warmup_factor


def test_defaults_are_those_of_the_protocol() -> None:
    config = TrainingConfig()
    assert (config.batch_size, config.betas, config.warmup_ratio, config.clip) == (256, (0.9, 0.999), 0.1, 0.5)
    assert config.fresh_optimizer and config.augment == "none"


def test_it_is_adamw_over_the_trainable_parameters() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].weight.requires_grad_(False)
    config = TrainingConfig(learning_rate=0.02, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-5)
    optimizer = make_optimizer(net.parameters(), config)
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters() if p.requires_grad]
    found = (group["lr"], group["weight_decay"], group["betas"], group["eps"])
    assert found == (0.02, 0.3, (0.8, 0.95), 1e-5)
    start, gradient = net[1].bias.detach().double(), torch.tensor([0.5, -2.0])
    net[1].bias.grad = gradient.clone()
    optimizer.step()  # Adam's first step is the learning rate, towards the sign of the gradient
    expected = start * (1 - 0.02 * 0.3) - 0.02 * gradient / (gradient.abs() + 1e-5)
    torch.testing.assert_close(net[1].bias.detach().double(), expected.double(), rtol=1e-6, atol=1e-7)


@given(st.integers(1, 500), st.floats(0, 1))
def test_the_warm_up_rises_linearly_from_nothing_and_stays(total: int, ratio: float) -> None:
    factors = [warmup_factor(step, total, ratio) for step in range(total)]
    for step, factor in enumerate(factors):
        assert factor == (min(1.0, step / (ratio * total)) if ratio * total > 0 else 1.0)
    assert factors == sorted(factors)


def test_every_group_follows_its_own_rate_as_under_torchs_scheduler() -> None:
    def groups() -> torch.optim.Optimizer:
        layers = nn.Linear(1, 1), nn.Linear(1, 1)
        return torch.optim.SGD(
            [{"params": layer.parameters(), "lr": lr} for layer, lr in zip(layers, (0.3, 0.01), strict=True)]
        )

    ours, theirs = groups(), groups()
    schedule = torch.optim.lr_scheduler.LambdaLR(theirs, lambda step: warmup_factor(step, 20, 0.3))
    for step in range(20):
        set_learning_rate(ours, warmup_factor(step, 20, 0.3))
        assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in theirs.param_groups]
        theirs.step()
        schedule.step()
    restored = groups()
    set_learning_rate(ours, 0.5)
    restored.load_state_dict(ours.state_dict())
    set_learning_rate(restored, 1.0)
    assert [g["lr"] for g in restored.param_groups] == [0.3, 0.01]


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"batch_size": 1}, "batch_size = 1: accepted is a whole number with 2 <= batch_size"),
        ({"learning_rate": 0}, "0 < learning_rate"),
        ({"weight_decay": -1}, "weight_decay = -1"),
        ({"betas": (0.9, 1.0)}, "betas = 1.0"),
        ({"betas": (0.9,)}, "accepted are two numbers"),
        ({"eps": float("inf")}, "eps = inf"),
        ({"warmup_ratio": 1.5}, "warmup_ratio = 1.5"),
        ({"clip": 0}, "0 < clip"),
        ({"augment": "flip"}, "accepted are 'none', 'crop', 'crop_flip'"),
        ({"precision": "bf61"}, "Did you mean 'bf16'"),
    ],
)
def test_wrong_settings_are_refused_with_what_is_accepted(chosen: dict, message: str) -> None:
    with pytest.raises(SettingError, match=f"TrainingConfig[:.] ?.*{message}"):
        TrainingConfig(**chosen)
