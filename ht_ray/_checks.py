"""Checks of settings, with messages that name the value, what is accepted, and the nearest name.

This is the ground floor: the standard library only, so that every part of the package can use it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

from ht_ray.errors import SettingError

__all__ = ["check_choice", "check_fields", "check_number", "did_you_mean", "owner_and_field", "refused"]


# Of float32 (the smallest: with all its digits), and of an index.
_LARGEST = (2 - 2**-23) * 2.0**127
_SMALLEST = 2.0**-126
_LAST_INDEX = 2**63 - 1


def did_you_mean(name: object, options: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the option nearest to `name`, or ``""``.

    Examples
    --------
    >>> did_you_mean("mnsit", ["digits", "mnist"])
    " Did you mean 'mnist'?"
    >>> did_you_mean("zzz", ["digits", "mnist"])
    ''
    """
    options = list(options)
    folded = {option.lower().replace("-", "_"): option for option in options}
    wanted = str(name).lower().replace("-", "_")
    near = difflib.get_close_matches(wanted, folded, n=1, cutoff=0.5)
    return f" Did you mean {folded[near[0]]!r}?" if near else ""


def owner_and_field(where: str) -> tuple[str | None, str]:
    """Return whose setting ``"Owner: field"`` or ``"Owner.field"`` is, and its name; the owner may be missing.

    Examples
    --------
    >>> owner_and_field("DataConfig.name"), owner_and_field("Tortoise: momentum"), owner_and_field("variant")
    (('DataConfig', 'name'), ('Tortoise', 'momentum'), (None, 'variant'))
    """
    owner, _, field = where.replace(": ", ".").rpartition(".")
    return owner or None, field


def refused(where: str, value: object, reason: str | None = None, **more: Any) -> SettingError:
    """Return the error of a setting that is called as in `check_choice`; `reason` and more are those of `SettingError`.

    Examples
    --------
    >>> str(refused("DataConfig.root", "here", " does not exist."))
    "DataConfig.root = 'here' does not exist."
    """
    owner, field = owner_and_field(where)
    return SettingError(owner=owner, field=field, value=value, reason=reason, **more)


def check_choice(where: str, value: object, options: Iterable[str]) -> str:
    """Return `value` if it is one of `options`; otherwise raise, suggesting the nearest.

    Parameters
    ----------
    where
        What is being set and where it came from, as the user knows it: ``"DataConfig.name"``.

    Raises
    ------
    SettingError
        If `value` is none of `options`.

    Examples
    --------
    >>> check_choice("Tortoise: reset_unit", "epoch", ["steps", "epochs"])
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: Tortoise: reset_unit = 'epoch': accepted are 'steps', 'epochs'. Did you mean 'epochs'?
    """
    options = list(options)
    if isinstance(value, str) and value in options:
        return value
    accepted, hint = ", ".join(map(repr, options)), did_you_mean(value, options)
    owner, field = owner_and_field(where)
    raise SettingError(
        f"{where} = {value!r}: accepted are {accepted}.{hint}",
        owner=owner,
        field=field,
        value=value,
        accepted=accepted,
        hint=hint.strip(),
        reason=": accepted are {options}.{suggestion}",
        options=accepted,
        suggestion=hint,
    )


def check_number(
    where: str,
    value: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
    integer: bool = False,
) -> None:
    """Raise unless `value` is a number of the given interval that the package's tensors can hold.

    Those are of float32; counts, which have a lower bound, are indices of 64 bits.

    Parameters
    ----------
    where
        What is being set and where it came from, as the user knows it.
    low, high
        The bounds, accepted themselves unless `low_open` or `high_open`.
    integer
        Whether only whole numbers (of type ``int``) are accepted.

    Raises
    ------
    SettingError
        If `value` is not such a number.

    Examples
    --------
    >>> check_number("Tortoise: momentum", 1.5, low=0, high=1, high_open=True)
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: Tortoise: momentum = 1.5: accepted is a number with 0 <= momentum < 1.
    """
    number = isinstance(value, int if integer else (int, float)) and not isinstance(value, bool)
    number = number and -math.inf < value < math.inf
    # Seeds, which have no bounds, may be of any length.
    largest = _LARGEST if not integer else _LAST_INDEX if math.isfinite(low) else math.inf
    if number and value > largest:
        high = min(high, largest)
    elif number and not integer and value < -largest:
        low = max(low, -largest)
    elif number and not integer and low_open and low == 0 < value < _SMALLEST:
        low, low_open = _SMALLEST, False
    if number:
        above = value > low if low_open else value >= low
        below = value < high if high_open else value <= high
        if above and below:
            return
    owner, name = owner_and_field(where)
    kind = "a whole number" if integer else "a number"
    left = f"{low:g} {'<' if low_open else '<='} " if math.isfinite(low) else ""
    right = f" {'<' if high_open else '<='} {high:g}" if math.isfinite(high) else ""
    bounds = f" with {left}{name}{right}" if left or right else ""
    raise SettingError(
        f"{where} = {value!r}: accepted is {kind}{bounds}.",
        owner=owner,
        field=name,
        value=value,
        accepted=f"{kind}{bounds}",
    )


def check_fields(settings: Any, *names: str, **bounds: Any) -> None:
    """Check these fields of a dataclass by `check_number`, each number of a tuple; None passes where the type says so.

    Examples
    --------
    >>> from dataclasses import make_dataclass
    >>> sizes = make_dataclass("Sizes", [("hidden", "tuple[int, ...]"), ("limit", "int | None")])
    >>> check_fields(sizes((64, 0), None), "limit", "hidden", low=1, integer=True)
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: Sizes.hidden = 0: accepted is a whole number with 1 <= hidden.
    """
    for name in names:
        value = getattr(settings, name)
        if value is None and "None" in str(settings.__dataclass_fields__[name].type):
            continue
        for number in value if isinstance(value, (tuple, list)) else (value,):
            check_number(f"{type(settings).__name__}.{name}", number, **bounds)
