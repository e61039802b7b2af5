"""Augmentation: random crops and flips of training images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from ht_ray.methods.method import Method
from ht_ray.methods.registry import register
from ht_ray.methods.settings import MethodSettings, grid, setting

__all__ = ["Augment"]


@register
class Augment(Method):
    """Augmentation: random crops and flips of training images.

    It changes how the network is trained, and does nothing at any moment.
    """

    name = "augment"
    title = "Augmentation"
    tried = grid(kind=("crop", "crop_flip"))
    capturable = True
    only_configures = True
    not_for_agents = "an agent has its own augmentation: its settings `shift` and `intensity`"

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings."""

        kind: Literal["crop", "crop_flip"] | None = setting(
            None,
            "crop or crop_flip; by default crop_flip for colour images and crop for others (digits).",
            was="augmentation",
        )

    @classmethod
    def configure_training(cls, settings: Any, config: Any, shape: tuple[int, ...]) -> Any:
        """Return `config` with the augmentation."""
        return replace(config, augment=settings.kind or ("crop_flip" if shape[0] > 1 or len(shape) < 3 else "crop"))
