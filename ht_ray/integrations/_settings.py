"""Settings of a tortoise that follows in another library's loop."""

from __future__ import annotations

from typing import Any

from ht_ray._checks import refused
from ht_ray.methods import Tortoise

__all__ = ["settings_of"]


def settings_of(owner: str, given: dict[str, Any]) -> Any:
    """Return the settings of a `Tortoise`, checked before there is a network.

    Raises
    ------
    SettingError
        If one is unknown or out of its range, or needs what such a loop does not call.
    """
    settings = Tortoise.Settings.make(given)
    for name in ("momenta", "recalibrate_batchnorm"):
        if getattr(settings, name):
            why = ": it needs validation or training batches, which this callback does not have; leave it out."
            raise refused(f"{owner}: {name}", getattr(settings, name), why)
    return settings
