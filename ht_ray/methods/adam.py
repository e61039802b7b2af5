"""Adam's epsilon and moments' decay, in place of the training's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ht_ray.methods.method import Method
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting

__all__ = ["Adam"]


@register
class Adam(Method):
    """Adam's epsilon and moments' decay, in place of the training's.

    It changes how the network is trained, and does nothing at any moment.
    """

    name = "adam"
    title = "Adam ε β"
    tried = grid(eps=(1e-4, 1e-6), betas=((0.9, 0.9), (0.9, 0.999)))
    capturable = True
    only_configures = True
    not_for_agents = "an agent has its own: its setting `adam_eps`"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings."""

        eps: float = setting(1e-4, "Epsilon, in place of the training's.", low=0)
        betas: tuple[float, float] = setting(
            (0.9, 0.9), "Decay of the two moments, in place of the training's.", low=0, high=1, high_open=True
        )

    @classmethod
    def configure_training(cls, settings: Any, config: Any, shape: tuple[int, ...]) -> Any:
        """Return `config` with these settings of Adam."""
        return replace(config, eps=settings.eps, betas=settings.betas)
