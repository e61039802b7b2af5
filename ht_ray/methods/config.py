"""Configurations of methods: which are combined, and their settings, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from ht_ray._checks import did_you_mean, refused
from ht_ray._deprecated import current_names
from ht_ray.errors import SettingError
from ht_ray.methods.method import Composition
from ht_ray.methods.registry import (
    METHODS,
    all_settings,
    flat_names,
    load_method,
    method_parts,
    old_names,
    split_methods,
)
from ht_ray.methods.tortoise import Tortoise

__all__ = ["MethodConfig", "parse_method", "parse_value", "setting_names"]


@dataclass(frozen=True, init=False)
class MethodConfig:
    """Methods that are combined, and their settings.

    Settings are given by their names on command lines, ``redo_threshold`` for the ``threshold`` of ReDo, and can be
    read by them; some are shared, as ``momentum``. Those of methods that are not in `name` are checked and ignored.

    Parameters
    ----------
    name : str, default "hare_tortoise"
        A name in `METHODS`, the path of a class, ``"my_package.my_module:MyMethod"``, or several joined by ``+``.
    settings : mapping or None, default None
        Settings by method, each a ``Settings`` object or a mapping: ``{"redo": {"threshold": 0.1}}``.
    sources : mapping or None, default None
        Where methods that are not of this package are imported from; found for methods that are registered.
    **flat
        Settings by their names on command lines; they go before those in `settings`.

    Raises
    ------
    SettingError
        If a value is not accepted, or methods are combined that exclude each other.

    Examples
    --------
    >>> config = MethodConfig("hare_tortoise+l2", momentum=0.99)
    >>> config.parts, config.momentum, config.l2_strength
    (('hare_tortoise', 'l2'), 0.99, 0.1)
    """

    name: str
    settings: Mapping[str, Any]
    sources: Mapping[str, str]

    def __init__(
        self,
        name: str = "hare_tortoise",
        settings: Mapping[str, Any] | None = None,
        sources: Mapping[str, str] | None = None,
        **flat: Any,
    ) -> None:
        for path in (sources or {}).values():
            load_method(path)
        parts = method_parts(name)
        flat = current_names("MethodConfig", flat, old_names(), all_settings())
        given = settings or {}
        made = {}
        active = _with_brought(parts)
        taken = {flat_name for part in active for flat_name in flat_names(METHODS[part])}
        for part, cls in METHODS.items():
            held = given.get(part, {})
            if not isinstance(held, Mapping):
                held = {one.name: getattr(held, one.name) for one in fields(held)}
            # Those of other methods are checked, unless an active one shares, and so checks, them.
            names = {name: one for name, one in flat_names(cls).items() if part in active or name not in taken}
            own = {one: flat[name] for name, one in names.items() if name in flat}
            if not (part in active or held or own):
                continue
            try:
                made[part] = cls.Settings.make({**held, **own})
            except SettingError as error:
                # As the setting is called here.
                flat_name = {one: name for name, one in flat_names(cls).items()}.get(str(error.field))
                raise (error if flat_name is None else error.of("MethodConfig", flat_name)) from error
        object.__setattr__(self, "name", "+".join(parts))
        object.__setattr__(self, "settings", {part: made[part] for part in active})
        known = {part: METHODS[part] for part in parts}
        foreign = {part: cls for part, cls in known.items() if cls.__module__.partition(".")[0] != "ht_ray"}
        where = {part: f"{cls.__module__}:{cls.__qualname__}" for part, cls in foreign.items()}
        object.__setattr__(self, "sources", where)

    def __hash__(self) -> int:
        return hash((self.name, tuple(self.settings.items())))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("name", "settings", "sources"):
            raise AttributeError(name)
        for part, own in self.settings.items():
            if (one := flat_names(METHODS[part]).get(name)) is not None:
                return getattr(own, one)
        known = all_settings()
        if name in known:
            return known[name].default
        raise AttributeError(f"MethodConfig has no setting {name!r}.{did_you_mean(name, known)}")

    @classmethod
    def for_agents(cls, name: str, **flat: Any) -> MethodConfig:
        """Return methods for an agent: intervals and units have the defaults that the literature has for agents.

        Parameters
        ----------
        name : str
            As in `MethodConfig`.
        **flat
            Settings by their names on command lines.

        Raises
        ------
        SettingError
            If a value is not accepted, or a method cannot act on an agent; the message has the reason.

        Examples
        --------
        >>> MethodConfig.for_agents("redo", redo_threshold=0.1).redo_unit
        'steps'
        >>> MethodConfig.for_agents("spectral_decoupling")
        Traceback (most recent call last):
        ...
        ht_ray.errors.SettingError: method 'spectral_decoupling' cannot act on an agent: it is a penalty on the logits \
of classes, and an agent's outputs are values.
        """
        defaults = {}
        for part in method_parts(name):
            method = METHODS[part]
            if method.not_for_agents is not None:
                raise SettingError(
                    f"method {part!r} cannot act on an agent: {method.not_for_agents}.",
                    owner="MethodConfig",
                    field="name",
                    value=name,
                )
            defaults[part] = {**method.agent_defaults}
        given = current_names("MethodConfig", flat, old_names(), all_settings())
        return cls(name, defaults, **given)

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the methods that are combined."""
        return tuple(self.name.split("+"))

    @property
    def has_ema(self) -> bool:
        """Whether there is a tortoise, which predicts."""
        return any(issubclass(METHODS[part], Tortoise) for part in self.settings)

    @property
    def resets(self) -> bool:
        """Whether the hare is set back to the tortoise."""
        return any(getattr(own, "reset_interval", None) is not None for own in self.settings.values())

    @property
    def flat(self) -> dict[str, Any]:
        """The settings by their names on command lines."""
        return {
            flat_name: getattr(own, one)
            for part, own in self.settings.items()
            for flat_name, one in flat_names(METHODS[part]).items()
        }

    def build(self, model: nn.Module, *, seed: int = 0, **given: Mapping[str, Any]) -> Composition:
        """Return the methods over a network.

        Parameters
        ----------
        model : nn.Module
            The network as initialised.
        seed : int, default 0
            Of what they draw.
        **given
            By method, more of what its class takes: ``redo={"layers": ...}``.

        Raises
        ------
        SettingError
            If a method cannot act on the network.
        """
        return Composition(
            model,
            [METHODS[part](model, own, seed=seed, **given.get(part, {})) for part, own in self.settings.items()],
        )

    def training(self, config: Any, shape: tuple[int, ...]) -> Any:
        """Return how the network is trained with these methods: with its augmentation, its weight decay, and its Adam.

        Parameters
        ----------
        config : ht_ray.vision.TrainingConfig
            Without the methods.
        shape : tuple of int
            One image's ``(channels, height, width)``.
        """
        for part, own in self.settings.items():
            config = METHODS[part].configure_training(own, config, shape)
        return config

    def model(self, config: Any) -> Any:
        """Return which network is built with these methods: with its activation (CReLU) and normalisation (LayerNorm).

        Parameters
        ----------
        config : ht_ray.vision.ModelConfig
            Without the methods.

        Raises
        ------
        SettingError
            If the network does not come in that form.
        """
        for part, own in self.settings.items():
            config = METHODS[part].configure_model(own, config)
        return config


def _with_brought(parts: Sequence[str]) -> tuple[str, ...]:
    classes = [METHODS[part] for part in parts]
    if any(issubclass(cls, Tortoise) for cls in classes):
        return tuple(parts)
    return (*parts, *dict.fromkeys(cls.brings for cls in classes if cls.brings is not None))


def setting_names(parts: Sequence[str]) -> list[str]:
    """Return the names in `MethodConfig` of the settings that mean something to these methods.

    Examples
    --------
    >>> setting_names(["l2", "augment"])
    ['l2_strength', 'l2_coupling', 'augment_kind']
    """
    return list(dict.fromkeys(name for part in _with_brought(parts) for name in flat_names(METHODS[part])))


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the settings in ``"name:setting=value,setting=value"``; without a colon there are none.

    Values are numbers, words, ``none``, ``true`` and ``false``; pairs are written ``0.9/0.99``.

    Raises
    ------
    SettingError
        If the name is unknown, or a setting is not one of the method's, has no value, or is given twice.

    Examples
    --------
    >>> parse_method("l2:l2_strength=0.01")
    ('l2', {'l2_strength': 0.01})
    >>> parse_method("adam+redo:adam_betas=0.9/0.9,redo_interval=none")
    ('adam+redo', {'adam_betas': (0.9, 0.9), 'redo_interval': None})
    """
    texts, rest = split_methods(text)
    name = "+".join(texts)
    parts = method_parts(name)
    known, every, renamed = setting_names(parts), all_settings(), old_names()
    settings: dict[str, Any] = {}
    for item in rest.split(",") if rest is not None else ():
        key, equals, value = (piece.strip() for piece in item.partition("="))
        if not equals or not key or not value:
            raise _refused(text, ": {item!r} is no setting=value.", item=item)
        key = key.replace("-", "_")
        if key not in every and key in renamed:
            key = next(iter(current_names("MethodConfig", {key: value}, renamed, every)))
        if key not in known:
            hint = "" if key in every else did_you_mean(key, known)
            listed = ", ".join(known) or "none"
            why = ": {key!r} is no setting of {name!r}, which has {listed}.{suggestion}"
            raise _refused(text, why, key=key, name=name, listed=listed, suggestion=hint)
        if key in settings:
            raise _refused(text, ": {key!r} is given twice.", key=key)
        settings[key] = parse_value(value)
    return "+".join(parts), settings


def _refused(text: str, reason: str, **values: Any) -> SettingError:
    return refused("MethodConfig.name", text, reason, **values)


def parse_value(text: str) -> Any:
    """Return the number, word, ``none``, ``true``, ``false`` or pair ``0.9/0.99`` that `text` is.

    Examples
    --------
    >>> parse_value("1e-3"), parse_value("none"), parse_value("0.9/0.99")
    (0.001, None, (0.9, 0.99))
    """
    if "/" in text:
        return tuple(parse_value(piece) for piece in text.split("/"))
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    kinds: tuple[Callable[[str], Any], ...] = (int, float)
    for kind in kinds:
        try:
            return kind(text)
        except ValueError:
            continue
    return text
