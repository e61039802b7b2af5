"""Plain values, as strict JSON."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from typing import Any, TypeAlias

from ht_ray._schema import SUM, sealed

__all__ = ["Scalar", "to_json", "to_plain", "to_sealed_json"]

Scalar: TypeAlias = bool | int | float | str | None


def to_plain(value: object) -> Any:
    """Return `value` as what JSON can hold: NaN and infinities become None, tuples lists, NumPy numbers numbers.

    Raises
    ------
    TypeError
        If a value, or a key of a mapping, is something else.

    Examples
    --------
    >>> to_plain({"loss": float("nan"), "shape": (3, 32)})
    {'loss': None, 'shape': [3, 32]}
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else None
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} is no text")
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return `value` (see `to_plain`) as strict JSON."""
    return json.dumps(to_plain(value), indent=indent, allow_nan=False)


def to_sealed_json(value: Mapping[str, object], *, indent: int | None = None) -> str:
    """Return an object as strict JSON that ends with its check sum, which `ht_ray._schema.parse` compares."""
    return sealed(to_json({**value, SUM: ""}, indent=indent))
