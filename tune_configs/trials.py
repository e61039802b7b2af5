"""Planned trials of the vision studies: their names, and what figures call them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ht_ray.methods import MethodConfig, display_name
from ht_ray.sweep import TrialSpec
from tune_configs.settings import VisionSettings

__all__ = ["label_of", "trial", "written"]


def label_of(method: MethodConfig, own: Mapping[str, Any] | None = None) -> str:
    """Return what tables and legends call a method with its settings, and with those that it has for itself.

    Examples
    --------
    >>> label_of(MethodConfig("hare_tortoise", momentum=0.99, reset_interval=5))
    'Hare & Tortoise m=0.99 r=5'
    >>> label_of(MethodConfig("head_reset"), {"toward": "fresh"})
    'Head Reset (toward=fresh)'
    """
    label, settings = display_name(method.name), method.flat
    if method.has_ema:
        label += f" m={settings['momentum']:.12g}"
    if "reset_interval" in settings:
        label += f" r={settings['reset_interval']}" + (" steps" if settings["reset_unit"] == "steps" else "")
    return label + (f" ({', '.join(named)})" if (named := _named(own)) else "")


def written(value: Any) -> str:
    """Return the value of a setting as it is written behind a method's name."""
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _named(own: Mapping[str, Any] | None) -> list[str]:
    return [
        f"{name}={written(value)}"
        for name, value in (own or {}).items()
        if name not in ("momentum", "reset_interval", "reset_unit")  # which the label and the name have already
    ]


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=+@-]", "_", text)


def trial(
    settings: VisionSettings,
    method: MethodConfig,
    access: str,
    seed: int,
    own: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
    label: str | None = None,
    columns: Mapping[str, Any] | None = None,
    **stream: Any,
) -> TrialSpec:
    """Return the planned trial of one method with one seed.

    Parameters
    ----------
    own
        Settings that the method has for itself in the study: they are part of its label.
    name, label
        What the trial and its line are called, in place of the method with its settings.
    columns
        More columns in the table of results, or others.
    **stream
        Settings of its stream that go before those of the study.
    """
    values, columns = method.flat, columns or {}
    parts = [name or str(columns.get("method", method.name))]
    if name is None:
        if method.has_ema:
            parts.append(f"m{values['momentum']:.12g}")
        if "reset_interval" in values:
            parts.append(f"r{values['reset_interval']}{values['reset_unit'][0]}")
        parts += map(_file_name, _named(own))
    stream_part = access if settings.stream == "continual" else _file_name(settings.stream)
    return TrialSpec(
        id="-".join([stream_part, *parts, f"seed{seed}"]),
        label=label or label_of(method, own),
        settings={**settings.trial_settings(method, access, seed), **columns},
        config=settings.trial_config(method, access, seed, **stream),
    )
