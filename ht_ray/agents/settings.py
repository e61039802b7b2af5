"""Agents by name, with changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ht_ray._checks import SettingError, check_choice, did_you_mean

__all__ = ["changed_variant"]

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
