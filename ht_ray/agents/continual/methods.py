"""Methods of an agent by their names: "hare_tortoise+redo:redo_interval=500" as settings of the agent."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ht_ray._checks import refused
from ht_ray.agents.base_config import AgentConfig
from ht_ray.agents.registry import agent_variant
from ht_ray.errors import SettingError
from ht_ray.methods import METHODS, display_name, parse_method
from ht_ray.methods.config import parse_value

__all__ = ["agent_with", "method_label", "with_methods"]

# What the agents have settings of their own for, by the names of the methods' settings.
_OWN: dict[str, dict[str, str]] = {
    "hare_tortoise": {
        "momentum": "momentum",
        "reset_interval": "reset_interval",
        "hare_tortoise_optimizer_state": "optimizer_state",
        "optimizer_state": "optimizer_state",
    },
    "shrink_perturb": {
        "shrink_perturb_interval": "shrink_perturb_interval",
        "shrink_perturb_ratio": "shrink_perturb_ratio",
        "toward": "toward",
    },
    "head_reset": {"head_reset_interval": "head_reset_interval", "toward": "toward"},
}
# What says that such a method acts, and how often it does by default, in gradient steps.
_SWITCH = {
    "hare_tortoise": "reset_interval",
    "shrink_perturb": "shrink_perturb_interval",
    "head_reset": "head_reset_interval",
}
#: Which activation a form of the network is.
_ACTIVATIONS = {"crelu": "crelu", "deep_fourier": "fourier"}


def agent_with(variant: str, settings: Iterable[str]) -> AgentConfig:
    """Return the settings of a variant of an agent, changed by texts such as ``"learning_rate=3e-3"``.

    Raises
    ------
    SettingError
        If there is no such variant or setting, or a text is not ``NAME=VALUE``.

    Examples
    --------
    >>> agent_with("dqn", ["hidden=32", "momentum=none"]).momentum is None
    True
    """
    changes = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingError(f"--set {text}: accepted is NAME=VALUE.")
        changes[name] = parse_value(value)
    return agent_variant(variant, **changes)


def method_label(text: str) -> str:
    """Return what tables and figures call a method that `with_methods` takes.

    Examples
    --------
    >>> method_label("hare_tortoise+redo:redo_interval=500")
    'Hare & Tortoise + ReDo (redo_interval=500)'
    """
    name, own = parse_method(text)
    listed = ", ".join(f"{setting}={value}" for setting, value in own.items())
    return display_name(name) + (f" ({listed})" if listed else "")


def with_methods(config: AgentConfig, text: str, *, interval: int) -> AgentConfig:
    """Return an agent's settings with methods that are named as in the vision studies.

    Parameters
    ----------
    config : AgentConfig
        The agent without them: a plain one has no resets.
    text : str
        Names joined by ``+``, and settings behind a colon, as in `ht_ray.methods.parse_method`. ``crelu``,
        ``deep_fourier`` and ``layer_norm`` are forms of the network.
    interval : int
        Gradient steps from one reset of Hare & Tortoise, Shrink & Perturb, Head Reset, ReDo, ReGraMa, FIRE or the
        optimiser to the next, unless the text says otherwise.

    Raises
    ------
    SettingError
        If there is no such method or setting, or the agent does not have it.

    Examples
    --------
    >>> from ht_ray.agents.dqn.config import DQNConfig
    >>> config = with_methods(DQNConfig(), "hare_tortoise+redo:redo_threshold=0.1", interval=500)
    >>> config.reset_interval, config.methods, config.method_settings["redo_interval"]
    (500, 'redo', 500)
    >>> with_methods(DQNConfig(), "crelu", interval=500).activation
    'crelu'
    """
    name, given = parse_method(text)
    changes: dict[str, Any] = {}
    others: list[str] = []
    for part in name.split("+"):
        if part == "plain":
            continue
        if part in _OWN:
            changes[_SWITCH[part]] = interval
            changes |= {_OWN[part][key]: given.pop(key) for key in list(given) if key in _OWN[part]}
            if part == "hare_tortoise" and config.momentum is None:  # an agent that has no average by itself
                changes.setdefault("momentum", METHODS[part].agent_defaults["momentum"])
        elif part in _ACTIVATIONS:
            changes["activation"] = _ACTIVATIONS[part]
        elif part == "layer_norm":
            changes["layer_norm"] = True
        else:
            others.append(part)
    for part in ("redo", "regrama", "snr", "fire", "optimizer_reset"):
        if part in others:
            given.setdefault(f"{part}_interval", interval)
    for key in changes:
        if key not in config.__dataclass_fields__:
            raise refused(f"{type(config).__name__}.methods", text, f": this agent has no {key}.")
    if others:
        changes |= {"methods": "+".join(others), "method_settings": given}
    elif given:
        why = f": {next(iter(given))!r} is no setting of these methods that the agent has."
        raise refused(f"{type(config).__name__}.methods", text, why)
    return replace(config, **changes)
