"""Planned trials of the vision studies: their names, and what figures call them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ht_ray.methods import MethodConfig, display_name
from ht_ray.sweep import TrialSpec
from tune_configs.settings import VisionSettings

__all__ = ["label_of", "trial"]


def label_of(method: MethodConfig) -> str:
    """Return what tables and legends call a method with its settings.

    Examples
    --------
    >>> label_of(MethodConfig("hare_tortoise", momentum=0.99, reset_interval=5))
    'Hare & Tortoise m=0.99 r=5'
    >>> label_of(MethodConfig("head_reset"))
    'Head Reset'
    """
    label, settings = display_name(method.name), method.flat
    if method.has_ema:
        label += f" m={settings['momentum']:.12g}"
    if "reset_interval" in settings:
        label += f" r={settings['reset_interval']}" + (" steps" if settings["reset_unit"] == "steps" else "")
    return label


def _told(settings: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}={'/'.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in settings.items()
    ]


def trial(
    settings: VisionSettings, method: MethodConfig, access: str, seed: int, own: Mapping[str, Any] | None = None
) -> TrialSpec:
    """Return the planned trial of one method with one seed.

    Parameters
    ----------
    own
        Settings that the method has for itself in the study: they are part of its label.
    """
    told = {name: value for name, value in (own or {}).items() if name not in ("momentum", "reset_interval")}
    parts = [access if settings.stream == "continual" else settings.stream, method.name]
    values = method.flat
    if method.has_ema:
        parts.append(f"m{values['momentum']:.12g}")
    if "reset_interval" in values:
        parts.append(f"r{values['reset_interval']}{values['reset_unit'][0]}")
    parts += [re.sub(r"[^A-Za-z0-9._=+@-]", "_", text) for text in _told(told)]
    return TrialSpec(
        id="-".join([*parts, f"seed{seed}"]),
        label=label_of(method) + (f" ({', '.join(_told(told))})" if told else ""),
        settings=settings.trial_settings(method, access, seed),
        config=settings.trial_config(method, access, seed),
    )
