"""Methods of an agent besides those that its own settings name: read, checked, and as flags of a command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ht_ray._deprecated import current_names
from ht_ray.errors import SettingError
from ht_ray.methods import METHODS, MethodConfig, Tortoise, flat_names, parse_method, setting_names
from ht_ray.methods.registry import FlatSetting, all_settings, old_names

__all__ = ["method_flags", "named_by_path", "read_methods"]

# What agents have settings of their own for, besides the tortoise.
_OWN = ("shrink_perturb", "head_reset")
_TORTOISE = "the tortoise of an agent is its target network: set momentum and reset_interval"


def read_methods(
    owner: str,
    text: str,
    settings: Mapping[str, Any] | None,
    *,
    own: Mapping[str, str],
    reinitialize_tortoise: bool,
) -> tuple[MethodConfig | None, dict[str, Any]]:
    """Return methods for an agent and those of their settings that are given; without a name there are none.

    Parameters
    ----------
    owner : str
        The class of the agent's settings, for messages.
    text : str
        Names joined by ``+``, or paths ``"package.module:Class"``; settings may follow as in `parse_method`.
    settings : mapping or None
        Settings by their names on command lines, which go before those in `text`.
    own : mapping
        The methods that the agent has settings of its own for, and what is to be done in their place.
    reinitialize_tortoise : bool
        Unless `settings` say otherwise, whether what recycles units does so in the target network too.

    Raises
    ------
    SettingError
        If a method or a value is not accepted, or a setting is of none of these methods.
    """
    where = f"{owner}.methods = {text!r}"
    try:
        name, inline = parse_method(text) if text.strip() else ("plain", {})
        given = {**inline, **current_names(owner, settings or {}, old_names(), all_settings())}
        parts = () if name == "plain" else tuple(name.split("+"))
        for part in parts:
            if part in own:
                raise SettingError(f"the agent has settings of its own for {part!r}: {own[part]}.")
        known = setting_names(parts)
        if foreign := [each for each in given if each not in known]:
            raise SettingError(
                f"method_settings: {foreign[0]!r} is no setting of these methods: accepted are "
                f"{', '.join(known) or 'none'}."
            )
        if not parts:
            return None, {}
        config = MethodConfig.for_agents(name, **{"reinitialize_tortoise": reinitialize_tortoise, **given})
        if config.has_ema:
            raise SettingError(f"{_TORTOISE}.")
        for each, value in config.flat.items():
            if value == "epochs":
                raise SettingError(f"{each} = 'epochs': an agent has none: accepted is 'steps'.")
    except SettingError as error:
        raise SettingError(f"{where}: {error}", owner=owner, field="methods", value=text) from error
    return config, {each: config.flat[each] for each in given}


def named_by_path(config: MethodConfig) -> str:
    """Return the methods' names; those that are not of this package by their path, so that a worker imports them."""
    paths = {part: config.sources.get(part, "") for part in config.parts}
    # A class inside a function has no path that can be imported.
    return "+".join(path if path.rpartition(":")[2].isidentifier() else part for part, path in paths.items())


def method_flags() -> dict[str, FlatSetting]:
    """Return the settings of all methods that can be added to an agent, by their names on command lines.

    Examples
    --------
    >>> flags = method_flags()
    >>> "redo_interval" in flags, "momentum" in flags, "spectral_decoupling_strength" in flags
    (True, False, False)
    """
    added = [
        cls
        for name, cls in METHODS.items()
        if cls.not_for_agents is None and not issubclass(cls, Tortoise) and name not in _OWN
    ]
    every = all_settings()
    return {name: every[name] for cls in added for name in flat_names(cls) if every[name].info.shared is None}
