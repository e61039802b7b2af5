"""Learners over tiny networks, batches that need no environment, and what to compare."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from ht_ray.methods import Method, MethodSettings, setting

MODULE = "default_policy"
SMALL = {"fcnet_hiddens": [8], "fcnet_activation": "relu", "head_fcnet_hiddens": [8], "head_fcnet_activation": "relu"}
DISCRETE = (gymnasium.spaces.Box(-10, 10, (4,), np.float32), gymnasium.spaces.Discrete(3))
CONTINUOUS = (gymnasium.spaces.Box(-10, 10, (4,), np.float32), gymnasium.spaces.Box(-1, 1, (2,), np.float32))


class Traveller(Method):
    """Counts steps, and sees each batch before it."""

    name, title, rank = "traveller", "Traveller", 7

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        amount: int = setting(1, "How much is counted at each step.", low=1)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counted = 0
        self.seen: list[Any] = []

    def before_forward(self, inputs: Any, tortoise: Any = None) -> None:
        self.seen.append(inputs)

    def after_step(self, optimizer: Any = None, tortoise: Any = None) -> None:
        assert len(self.seen) == self.counted // self.settings.amount + 1
        self.counted += self.settings.amount


def is_sac(config: Any) -> bool:
    from ray.rllib.algorithms.sac.sac import SACConfig

    return isinstance(config, SACConfig)


def configured(config: Any, seed: int = 0, **training: Any) -> Any:
    """Return the config of a tiny agent."""
    rates = {"actor_lr": 0.01, "critic_lr": 0.01, "alpha_lr": 0.01, "lr": None} if is_sac(config) else {"lr": 0.01}
    return config.rl_module(model_config=SMALL).debugging(seed=seed).training(**rates, **training)


def built(config: Any) -> Any:
    """Return a learner, checked and built as an algorithm would."""
    config.validate()
    spaces = {MODULE: CONTINUOUS if is_sac(config) else DISCRETE}
    return config.build_learner(spaces=spaces)


def batch(number: int, size: int = 8, *, continuous: bool = False, modules: tuple[str, ...] = (MODULE,)) -> Any:
    """Return the batch of this number, the same each time."""
    from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

    draws = torch.Generator().manual_seed(number)
    actions = torch.rand(size, 2, generator=draws) * 2 - 1 if continuous else torch.randint(3, (size,), generator=draws)
    columns = {
        "obs": torch.randn(size, 4, generator=draws),
        "new_obs": torch.randn(size, 4, generator=draws),
        "actions": actions,
        "rewards": torch.randn(size, generator=draws),
        "terminateds": torch.rand(size, generator=draws) < 0.1,
        "weights": torch.ones(size),
        "n_step": torch.ones(size),
    }
    return MultiAgentBatch({module: SampleBatch(dict(columns)) for module in modules}, env_steps=size)


def update(learner: Any, numbers: range, **kwargs: Any) -> None:
    """Update once with each of these batches."""
    continuous = is_sac(learner.config)
    size = kwargs.pop("size", 8)
    for number in numbers:
        torch.manual_seed(number)  # SAC samples actions
        learner.update(
            batch=batch(number, size, continuous=continuous),
            timesteps={"num_env_steps_sampled_lifetime": number + 1},
            **kwargs,
        )


def weights(learner: Any) -> dict[str, torch.Tensor]:
    """Return all tensors of the module, copied."""
    return {name: tensor.clone() for name, tensor in learner.module[MODULE].state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def pairs(learner: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return online and target tensors side by side."""
    return [
        pair
        for online, target in learner.module[MODULE].unwrapped().get_target_network_pairs()
        for pair in zip(online.state_dict().values(), target.state_dict().values(), strict=True)
    ]


def together(learner: Any) -> bool:
    """Return whether online and target networks are equal."""
    return all(torch.equal(online, target) for online, target in pairs(learner))


def by_hand(config: Any, momentum: float, interval: int | None) -> Any:
    """Return a stock learner over which Hare & Tortoise is written out by hand."""
    stock = configured(config)

    class ByHand(stock.learner_class):  # type: ignore[misc,name-defined]
        done = 0

        def apply_gradients(self, gradients_dict: Any) -> None:
            super().apply_gradients(gradients_dict)
            self.done += 1
            with torch.no_grad():
                for online, target in pairs(self):
                    target.copy_(torch.lerp(target, online, 1 - momentum))
                    if interval is not None and self.done % interval == 0:
                        online.copy_(target)

    stock.training(learner_class=ByHand, target_network_update_freq=10**9)
    return built(stock)


def state(algorithm: Any) -> dict[str, Any]:
    """Return all that an algorithm around an agent has to continue from."""
    learner = algorithm.learner_group._learner
    return {"agent": learner.agent.state_dict(), "collector": algorithm.env_runner.collector.state_dict()}


def equal(one: Any, two: Any) -> bool:
    """Return whether nested tensors and plain data are the same, to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


def continue_in_a_new_process(address: str, checkpoint: str, path: Path, iterations: int) -> dict[str, Any]:
    """Return the state of an algorithm that another process restored and trained on."""
    code = (
        "import ray, torch; torch.set_num_threads(1)\n"
        f"ray.init(address={address!r}, log_to_driver=False)\n"
        "from ray.rllib.algorithms.algorithm import Algorithm\n"
        f"algorithm = Algorithm.from_checkpoint({checkpoint!r})\n"
        f"for _ in range({iterations}):\n"
        "    result = algorithm.train()\n"
        "torch.save({'agent': algorithm.learner_group._learner.agent.state_dict(),\n"
        "            'collector': algorithm.env_runner.collector.state_dict(),\n"
        f"            'steps': result['num_env_steps_sampled_lifetime']}}, {str(path)!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=280)
    return torch.load(path, weights_only=True)  # type: ignore[no-any-return]
