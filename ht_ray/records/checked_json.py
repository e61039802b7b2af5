"""JSON that is read back: strict, of a given form, and with a check sum that tells damage from what was written.

What a file must be is a *form*:

- a type (``str``, ``int``, ``bool``, ``dict``; ``float`` takes whole numbers, too, and nothing infinite), or ``None``;
- a set of texts, of which it is one; a compiled pattern that the whole text matches;
- a tuple of forms, of which one fits;
- ``[form]``, a list;
- a dict, an object: the form of each key, ``"key?"`` for one that may be missing, and ``str`` for all further keys,
  which without that are let alone.
"""

from __future__ import annotations

import json
import math
import numbers
import re
import zlib
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args, get_origin

__all__ = [
    "SUM",
    "Damaged",
    "Scalar",
    "check_form",
    "form_of",
    "parse",
    "sum_of",
    "to_json",
    "to_jsonable",
    "to_sealed_json",
]

Scalar: TypeAlias = bool | int | float | str | None

#: The last key of an object that was written with its check sum.
SUM = "sum"
_MARK = f'"{SUM}": "'
_TYPES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}


class Damaged(ValueError):
    """A file that is not what was written; the message says what is wrong with it."""


def to_jsonable(value: object) -> Any:
    """Return `value` as what JSON can hold: NaN and infinities become None, tuples lists, NumPy numbers numbers.

    Raises
    ------
    TypeError
        If a value, or a key of a mapping, is something else.

    Examples
    --------
    >>> to_jsonable({"loss": float("nan"), "shape": (3, 32)})
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
        return {key: to_jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(item) for item in value]
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return `value` (see `to_jsonable`) as strict JSON."""
    return json.dumps(to_jsonable(value), indent=indent, allow_nan=False)


def to_sealed_json(value: Mapping[str, object], *, indent: int | None = None) -> str:
    """Return an object as strict JSON that ends with its check sum, which `parse` compares.

    Examples
    --------
    >>> line = to_sealed_json({"index": 0})
    >>> line
    '{"index": 0, "sum": "2304b955"}'
    >>> parse(line.replace("0,", "1,").encode())
    Traceback (most recent call last):
    ...
    ht_ray.records.checked_json.Damaged: its check sum says that it was changed
    """
    head, mark, tail = to_json({**value, SUM: ""}, indent=indent).rpartition(_MARK)
    return f"{head}{mark}{sum_of(head.encode())}{tail}"


def parse(content: bytes, form: Any = dict) -> Any:
    """Return the JSON in `content`, if it is of the form and, where it has a check sum, unchanged.

    Raises
    ------
    Damaged
        If it is not.
    """
    try:
        value = json.loads(content, parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise Damaged("it is no text in UTF-8") from error
    except RecursionError as error:
        raise Damaged("it is no JSON of ours: it is nested too deeply") from error
    except ValueError as error:
        raise Damaged(f"it is no JSON: {error}") from error
    if isinstance(value, dict) and SUM in value:
        head, _, rest = content.rpartition(_MARK.encode())
        if rest[:8] != sum_of(head).encode():
            raise Damaged("its check sum says that it was changed")
    check_form(value, form)
    return value


def sum_of(content: bytes) -> str:
    """Return the check sum of `content`, which tells any single error apart; it guards against nobody's intent."""
    return f"{zlib.crc32(content):08x}"


def check_form(value: object, form: Any, where: str = "") -> None:
    """Raise `Damaged`, naming where, unless `value` is of the form.

    Examples
    --------
    >>> check_form({"trials": [{"id": 3}]}, {"trials": [{"id": str}]})
    Traceback (most recent call last):
    ...
    ht_ray.records.checked_json.Damaged: trials[0].id is 3, and should be a text
    """
    if not _fits(value, form):
        raise Damaged(f"{where or 'it'} is {_shown(value)}, and should be {_expected(form)}")
    if isinstance(form, tuple):
        form = next(one for one in form if _fits(value, one))
    if isinstance(form, list):
        for index, item in enumerate(value):  # type: ignore[var-annotated, arg-type]
            check_form(item, form[0], f"{where}[{index}]")
    elif isinstance(form, dict):
        assert isinstance(value, dict)
        known = {key.removesuffix("?"): of for key, of in form.items() if key is not str}
        missing = [key for key in form if key is not str and not key.endswith("?") and key not in value]
        if missing:
            raise Damaged(f"{where or 'it'} has no {missing[0]!r}")
        for key, item in value.items():
            if (of := known.get(key, form.get(str, ...))) is not ...:
                check_form(item, of, f"{where}.{key}" if where else key)


def form_of(hint: Any) -> Any:
    """Return the form of what JSON makes of a value with this type annotation.

    Examples
    --------
    >>> form_of(tuple[int, ...] | None)
    ([(<class 'int'>,)], None)
    """
    arguments = get_args(hint)
    if get_origin(hint) in (dict, Mapping):
        return {}
    if get_origin(hint) is Literal:
        return set(arguments)
    if get_origin(hint) is tuple:
        return [tuple(form_of(argument) for argument in arguments if argument is not ...)]
    return tuple(map(form_of, arguments)) or (None if hint is type(None) else hint)


def _fits(value: object, form: Any) -> bool:
    """Whether `value` is of the form, but for what is inside of lists and objects."""
    if isinstance(form, tuple):
        return any(_fits(value, one) for one in form)
    if isinstance(form, (set, frozenset)):
        return isinstance(value, str) and value in form
    if isinstance(form, re.Pattern):
        return isinstance(value, str) and form.fullmatch(value) is not None
    if isinstance(form, (list, dict)):
        return isinstance(value, type(form))
    if form is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)
    if form is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if form is None else isinstance(value, form)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _expected(form: Any) -> str:
    if isinstance(form, tuple):
        return " or ".join(map(_expected, form))
    if isinstance(form, (set, frozenset)):
        return " or ".join(map(repr, sorted(form)))
    if isinstance(form, re.Pattern):
        return "a name"
    if isinstance(form, list):
        return "a list"
    return "null" if form is None else _TYPES[dict if isinstance(form, dict) else form]


def _shown(value: object) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _refuse(constant: str) -> float:
    raise Damaged(f"it has the number {constant}")
