"""Agents by name, with changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ht_ray._checks import check_choice, did_you_mean
from ht_ray.errors import SettingError

__all__ = ["MOST", "changed_variant"]

#: The most of what takes memory or time; beyond are typing errors.
MOST = {
    "steps": 1_000_000_000,
    "evaluation_episodes": 100_000,
    "batch_size": 100_000,
    "updates_per_step": 10_000,
    "n_step_start": 1000,
    "n_step": 1000,
    "spr_steps": 1000,
    "hidden": 10_000,
    "bins": 100_000,
    "shift": 1000,
    "replay_capacity": 1_000_000_000,
}

_Config = TypeVar("_Config", bound=Any)


def changed_variant(variants: Mapping[str, _Config], name: str, changes: Mapping[str, Any]) -> _Config:
    """Return the one of `variants` (dataclasses) that is called `name`, with `changes`.

    Raises
    ------
    SettingError
        If there is no such variant or setting, or a setting is not accepted.
    """
    config = variants[check_choice("variant", name, variants)]
    known = config.__dataclass_fields__
    for setting in changes:
        if setting not in known:
            raise SettingError(f"{type(config).__name__} has no setting {setting!r}.{did_you_mean(setting, known)}")
    return replace(config, **changes)
