"""Settings of methods: declared once, with what is accepted and what they mean; checks and flags derive from them."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from itertools import product
from typing import Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from ht_ray._checks import check_choice, check_number, did_you_mean, refused
from ht_ray.errors import SettingError

__all__ = [
    "MethodSettings",
    "SettingInfo",
    "declared",
    "grid",
    "interval_unit",
    "recycled_steps",
    "setting",
    "state_of_changed",
    "treats_tortoise",
]


class SettingInfo(NamedTuple):
    """What is declared of a setting besides its type and default."""

    help: str
    """What it means, a sentence; the default's source, where it has one."""
    bounds: Mapping[str, Any]
    """Of a number, as `ht_ray._checks.check_number` takes them."""
    shared: str | None
    """Its name in `MethodConfig` and on command lines, where several methods have it; by default ``METHOD_FIELD``."""
    was: tuple[str, ...]
    """Names that it had there in earlier versions."""
    check: Callable[[str, Any], Any] | None
    """A check in place of that of the type: called with where the setting is and its value, unless that may be None."""


def setting(
    default: Any,
    help: str,
    *,
    shared: str | None = None,
    was: str | tuple[str, ...] = (),
    check: Callable[[str, Any], Any] | None = None,
    **bounds: Any,
) -> Any:
    """Return the field of a setting.

    Parameters
    ----------
    default : Any
        Its default.
    help : str
        What it means, a sentence for users.
    shared : str or None, default None
        Its name in `MethodConfig` and on command lines, for a setting that several methods share. By default it is
        called by its method and its own name: ``redo_threshold``.
    was : str or tuple of str, default ()
        Names that it had there in earlier versions.
    check : callable or None, default None
        A check in place of that of the type, called with where the setting is and its value unless that is None; raises
        `SettingError`.
    **bounds
        Of a number: ``low``, ``high``, ``low_open``, ``high_open``.
    """
    info = SettingInfo(help, bounds, shared, (was,) if isinstance(was, str) else was, check)
    return field(default=default, metadata={"setting": info})


def treats_tortoise() -> Any:
    """Return the field of a setting that all methods share which re-initialise weights."""
    return setting(
        True,
        "Whether what re-initialises weights (Shrink & Perturb, Head Reset, ReDo, ...), combined with a tortoise, acts "
        "on it too; otherwise its average carries the old weights past it.",
        shared="reinitialize_tortoise",
        was="reinitialise_tortoise",
    )


def interval_unit() -> Any:
    """Return the field of the unit of an interval that begins again with each phase if it is one of epochs."""
    return setting("epochs", "Unit of the interval: epochs, counted from 1 in each phase, or steps over the whole run.")


def state_of_changed() -> Any:
    """Return the field of a setting of methods that change whole parameters."""
    return setting("clear", "What happens to the optimiser's state of the changed parameters.")


def recycled_steps(default: str, source: str) -> Any:
    """Return the field of a setting of methods that recycle units: see `ht_ray.mechanisms.units.step_counts`."""
    return setting(
        default,
        "What becomes of Adam's step count where units are recycled: keep, per_weight (recycled weights count their "
        f"own steps), or reset (that of the whole parameter). The default is that of {source}.",
    )


def grid(**values: tuple[Any, ...]) -> tuple[dict[str, Any], ...]:
    """Return all combinations of the values of settings; the last setting changes first.

    Examples
    --------
    >>> grid(unit=("steps",), interval=(100, 500))
    ({'unit': 'steps', 'interval': 100}, {'unit': 'steps', 'interval': 500})
    """
    return tuple(dict(zip(values, each, strict=True)) for each in product(*values.values()))


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """Base of a method's settings; values are checked by their types and what `setting` declares.

    Raises
    ------
    SettingError
        If a value is not accepted.
    """

    #: Whose settings they are, in messages; set by the method's class.
    owner: ClassVar[str] = "MethodSettings"

    def __post_init__(self) -> None:
        for name, (kind, info) in declared(type(self)).items():
            where, value = f"{self.owner}: {name}", getattr(self, name)
            if info.check is None:
                _check(where, value, kind, info.bounds)
            elif value is not None or type(None) not in get_args(kind):
                info.check(where, value)

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Any:
        """Return settings with these values.

        Raises
        ------
        SettingError
            If there is no such setting, or a value is not accepted.
        """
        known = declared(cls)
        for name in values:
            if name not in known:
                hint = did_you_mean(name, known)
                raise SettingError(
                    f"{cls.owner} has no setting {name!r}: accepted are {', '.join(known) or 'none'}.{hint}",
                    owner=cls.owner,
                    field=name,
                    value=values[name],
                    hint=hint.strip(),
                )
        # JSON has lists only.
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


_declared: dict[type[MethodSettings], dict[str, tuple[Any, SettingInfo]]] = {}


def declared(cls: type[MethodSettings]) -> dict[str, tuple[Any, SettingInfo]]:
    """Return the type of each setting and what is declared of it, by name.

    Raises
    ------
    TypeError
        If a field was not made by `setting`.
    """
    if cls not in _declared:
        hints = get_type_hints(cls)
        for one in fields(cls):
            if "setting" not in one.metadata or one.default is MISSING:
                raise TypeError(f"{cls.__qualname__}.{one.name}: make it with ht_ray.methods.setting(default, help)")
        _declared[cls] = {one.name: (hints[one.name], one.metadata["setting"]) for one in fields(cls)}
    return _declared[cls]


def _check(where: str, value: Any, kind: Any, bounds: Mapping[str, Any]) -> None:
    if get_origin(kind) in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return
        kinds = [each for each in get_args(kind) if each is not type(None)]
        # Of several, the one that the value has; otherwise the first says what is accepted.
        kind = next((each for each in kinds if isinstance(each, type) and isinstance(value, each)), kinds[0])
    if get_origin(kind) is Literal:
        check_choice(where, value, get_args(kind))
    elif kind is bool:
        if not isinstance(value, bool):
            raise refused(where, value, accepted="True or False")
    elif kind in (int, float):
        check_number(where, value, integer=kind is int, **bounds)
    elif get_origin(kind) is tuple and (float in get_args(kind) or int in get_args(kind)):
        wanted = len(get_args(kind))
        if not isinstance(value, (tuple, list)) or (Ellipsis not in get_args(kind) and len(value) != wanted):
            raise refused(where, value, accepted="a tuple of numbers" if Ellipsis in get_args(kind) else "two numbers")
        for one in value:
            check_number(where, one, integer=int in get_args(kind), **bounds)
    elif kind is str and not isinstance(value, str):
        raise refused(where, value, accepted="a text")
