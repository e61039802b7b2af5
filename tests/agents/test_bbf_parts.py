"""BBF's schedules, SPR loss and settings."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from ht_ray.agents.bbf.config import BBF_VARIANTS, BBFConfig
from ht_ray.agents.bbf.horizon import HorizonSchedule
from ht_ray.agents.bbf.spr import spr_loss
from ht_ray.agents.dqn.config import DQN_VARIANTS
from ht_ray.agents.drq.config import VARIANTS
from ht_ray.agents.registry import AGENT_VARIANTS, agent_variant
from ht_ray.agents.replay import make_replay
from ht_ray.errors import SettingError


@pytest.mark.parametrize("update", [0, 1, 437, 438, 1234, 5000, 9999, 10_000, 39_999])
def test_schedules(update: int) -> None:
    """Interpolated in logarithms, as the published code does."""
    left = min(max((10_000 - update) / 10_000, 0), 1)
    n_step = 10 * math.exp(left * -math.log(3 / 10) + math.log(3 / 10))
    gap = math.exp(left * (math.log(0.03) - math.log(0.003)) + math.log(0.003))
    cycle = HorizonSchedule()
    assert cycle.n_step_at(update) == int(n_step + 0.5)
    assert cycle.discount_at(update) == pytest.approx(1 - gap, abs=1e-12)


def test_the_n_step_passes_through_every_number_once() -> None:
    steps = [HorizonSchedule().n_step_at(update) for update in range(10_001)]
    assert steps == sorted(steps, reverse=True) and set(steps) == set(range(3, 11))
    # 10 becomes 9 where 10 * 0.3 ** x is 9.5.
    assert steps.index(9) == math.ceil(10_000 * math.log(0.95) / math.log(0.3))


def test_spr_loss_of_made_up_latents() -> None:
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randn(3, 5, 7, generator=generator, requires_grad=True)
    targets = torch.randn(3, 5, 7, generator=generator, requires_grad=True)
    mask = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    losses = spr_loss(predictions, targets, mask)
    for sample in range(3):
        total = 0.0
        for step in range(5):
            one, two = predictions[sample, step].tolist(), targets[sample, step].tolist()
            dot = sum(a * b for a, b in zip(one, two, strict=True))
            total += float(mask[sample, step]) * (2 - 2 * dot / math.hypot(*one) / math.hypot(*two))
        assert losses[sample].item() == pytest.approx(total / 5, abs=1e-5)
    losses.sum().backward()
    assert targets.grad is None
    assert predictions.grad is not None
    assert (predictions.grad.abs().sum(-1) > 0).equal(mask > 0)
    assert spr_loss(predictions * 5, predictions * 3, mask).abs().max() < 1e-6
    with pytest.raises(ValueError, match="expected"):
        spr_loss(predictions, targets, mask[:, :4])


def test_restarts_of_a_whole_run() -> None:
    def due(config: BBFConfig) -> list[int]:
        return [update for update in range(config.total_updates + 1) if config.restart_is_due(update)]

    assert due(BBFConfig()) == [40_000, 80_000, 120_000]
    fast = agent_variant("bbf@rr8")
    assert fast.total_updates == 784_000 and due(fast) == list(range(40_000, 744_001, 40_000))
    assert due(BBFConfig(restart_interval=None)) == [] == due(BBFConfig(training_steps=1000))
    # One whole interval must be left.
    assert due(BBFConfig(training_steps=42_000)) == [40_000] and due(BBFConfig(training_steps=41_999)) == []


def test_steps_since_a_restart() -> None:
    config = BBFConfig(restart_interval=7, training_steps=20, learning_starts=5)
    assert config.total_updates == 30
    latest, expected = 0, []
    for update in range(31):
        latest = update if update and update % 7 == 0 and update + 7 <= 30 else latest
        expected.append(update - latest)
    assert [config.since_restart(update) for update in range(31)] == expected


def test_defaults_are_the_published_ones() -> None:
    config = BBFConfig()
    assert (config.learning_rate, config.adam_eps, config.weight_decay) == (1e-4, 1.5e-4, 0.1)
    assert (config.batch_size, config.updates_per_step, config.batches_per_sample) == (32, 2, 2)
    assert (config.momentum, config.replay_capacity, config.learning_starts) == (0.995, 200_000, 2000)
    assert (config.epsilon, config.evaluation_epsilon, config.epsilon_decay_steps) == (0, 0.001, 2001)
    assert (config.width, config.hidden, config.bins, config.value_limit) == (4, 2048, 51, 10)
    assert (config.spr_weight, config.spr_steps, config.restart_interval) == (5, 5, 40_000)
    assert config.act_with_tortoise and config.prioritized and config.dueling and config.double
    assert not config.published_n_step and config.reset_interval is None
    replay = agent_variant("bbf", published_n_step=True).replay_config(stack=4)
    assert (replay.published_n_step, replay.prioritized, replay.capacity) == (True, True, 200_000)
    assert (replay.priority_exponent, replay.importance) == (0.5, 0.5)


@pytest.mark.parametrize("longest", ["n_step_start", "n_step", "spr_steps"])
def test_a_replay_too_small_to_ever_draw_from_is_refused(longest: str) -> None:
    settings: dict[str, Any] = {"n_step_start": 2, "n_step": 2, "spr_steps": 2, "replay_capacity": 12}
    config = BBFConfig(**settings | {longest: 9})
    with pytest.raises(SettingError, match="capacity = 12"):
        make_replay(config.replay_config(stack=4))
    assert make_replay(replace(config, replay_capacity=13).replay_config(stack=4)).n_step == 9
    if longest == "spr_steps":
        make_replay(replace(config, spr_weight=0.0).replay_config(stack=4))


def test_variants() -> None:
    names = ["bbf", "bbf-spr0", "bbf-spr0+ht"]
    names += [f"{name}@rr8" for name in names]
    assert list(BBF_VARIANTS) == [*names, "bbf-published-2023", "bbf-published-2025"]  # those: test_published.py
    for name in names:
        config = BBF_VARIANTS[name]
        assert config.spr_weight == (0 if "spr0" in name else 5)
        assert config.reset_interval == (4000 if "+ht" in name else None)
        assert config.updates_per_step == (8 if name.endswith("@rr8") else 2)
        # As the published code does when it is run.
        assert config.restart_optimizer_state == ("keep" if "spr0" in name else "clear")
    assert set(AGENT_VARIANTS) == {*VARIANTS, *BBF_VARIANTS, *DQN_VARIANTS}
    assert agent_variant("bbf", learning_rate=0.5, restart_optimizer_state="keep") == BBFConfig(learning_rate=0.5)
    with pytest.raises(SettingError, match="Did you mean 'bbf-spr0'"):
        agent_variant("bbf_spr0")
    with pytest.raises(SettingError, match="Did you mean 'momentum'"):
        agent_variant("bbf", momentun=0.9)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"momentum": 1.0}, "BBFConfig.momentum"),
        ({"reset_interval": 0}, "BBFConfig.reset_interval = 0"),
        ({"restart_interval": 0.5}, "BBFConfig.restart_interval"),
        ({"discount": 1.0}, "BBFConfig.discount"),
        ({"spr_weight": -1}, "BBFConfig.spr_weight"),
        ({"weight_decay": -1}, "BBFConfig.weight_decay"),
        ({"restart_optimizer_state": "drop"}, "BBFConfig.restart_optimizer_state"),
        ({"updates_per_step": 3}, "multiples of batches_per_sample = 2"),
        ({"width": 0.01}, "at least 0.0625"),
        ({"shrink_perturb_ratio": 1.5}, "BBFConfig.shrink_perturb_ratio"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        BBFConfig(**settings)
