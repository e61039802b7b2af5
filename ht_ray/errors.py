"""Errors and warnings of the package; the standard library is all they need."""

from __future__ import annotations

import re
from collections.abc import Callable
from string import Formatter
from typing import Any

__all__ = ["Diverged", "Interrupted", "SettingError", "SettingWarning"]


class SettingError(ValueError):
    """A setting that cannot work.

    Command lines print it without a traceback, and exit with status 2. Where one setting is wrong, `owner` and `field`
    name it, so that whoever knows it under another name, as a flag, says so: `describe`.

    Parameters
    ----------
    message : str or None, default None
        The text. By default it is made of what follows, as ``"Tortoise: momentum = 2: accepted is ..."``.
    owner : str or None, default None
        Whose setting it is, as the user knows it: ``"DataConfig"``.
    field : str or None, default None
        The setting's name there.
    value : Any
        What was given.
    accepted : str or None, default None
        What would be accepted, as a phrase: ``"a number with 0 <= momentum < 1"``.
    hint : str, default ""
        What to do, a sentence.
    reason : str or None, default None
        What follows the value, in place of `accepted` and `hint`. Other settings are named in braces, alone or with
        their owner: ``" changes nothing: {search} = {kind!r}."``
    **values
        What stands in the other braces of `reason`: values, as ``kind="grid"``, or another error.

    Examples
    --------
    >>> error = SettingError(owner="Tortoise", field="momentum", value=2, accepted="a number with 0 <= momentum < 1")
    >>> str(error)
    'Tortoise: momentum = 2: accepted is a number with 0 <= momentum < 1.'
    >>> error.owner, error.field, error.value
    ('Tortoise', 'momentum', 2)
    >>> error = SettingError(owner="Search", field="samples", value=9, reason=": {search} = {kind!r}.", kind="grid")
    >>> error.describe(lambda owner, field: f"--{field}")
    "--samples = 9: --search = 'grid'."
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        owner: str | None = None,
        field: str | None = None,
        value: Any = None,
        accepted: str | None = None,
        hint: str = "",
        reason: str | None = None,
        **values: Any,
    ) -> None:
        self.owner = owner
        self.field = field
        self.value = value
        self.accepted = accepted
        self.hint = hint
        self.reason = reason
        self.values = values
        super().__init__(self.describe(_plain_name) if message is None else message)

    def describe(self, name: Callable[[str | None, str], str]) -> str:
        """Return the text with each setting called what `name` returns for its owner, which may be None, and field."""
        if self.field is None or (self.reason is None and self.accepted is None):
            return str(self)
        start = f"{name(self.owner, self.field)} = {self.value!r}"
        if self.reason is not None:
            return start + _Names(name).vformat(self.reason, (), self.values)
        return f"{start}: accepted is {self.accepted}." + (f" {self.hint}" if self.hint else "")

    def of(self, owner: str, field: str, value: Any = None) -> SettingError:
        """Return this error as that of another setting, whose value, if given, stands in place of its own."""
        given = self.value if value is None else value
        if self.reason is None and self.accepted is None:
            return SettingError(owner=owner, field=field, value=given, reason=": {text}", text=str(self))
        # Bounds have the setting's name between them.
        between = rf"(?<=[<=] ){self.field}\b|\b{self.field}(?= <)"
        accepted = None if self.accepted is None else re.sub(between, field, self.accepted)
        rest: dict[str, Any] = {"accepted": accepted, "hint": self.hint, "reason": self.reason, **self.values}
        return SettingError(owner=owner, field=field, value=given, **rest)

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is pickled by its arguments alone, and some cross processes.
        names = ("owner", "field", "value", "accepted", "hint", "reason")
        return _restored, (str(self), {name: getattr(self, name) for name in names} | self.values)


class _Names(Formatter):
    """Fills in a reason: values by their names, and settings as they are called."""

    def __init__(self, name: Callable[[str | None, str], str]) -> None:
        self.name = name

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        if field_name in kwargs:
            value = kwargs[field_name]
            return value.describe(self.name) if isinstance(value, SettingError) else value, field_name
        owner, _, field = field_name.rpartition(".")
        return self.name(owner or None, field), field_name


def _plain_name(owner: str | None, field: str) -> str:
    # Those of classes of settings are read as attributes.
    return f"{owner}{'.' if owner.endswith(('Config', 'Settings')) else ': '}{field}" if owner else field


def _restored(message: str, rest: dict[str, Any]) -> SettingError:
    return SettingError(message, **rest)


class SettingWarning(UserWarning):
    """Settings that are accepted but can hardly do what they are for."""


class Diverged(ArithmeticError):
    """The training loss is no longer finite."""


class Interrupted(RuntimeError):
    """Raised where training stops because it was asked to, in the middle of a part, at a point where it can be saved.

    Nothing is reported then. Called again on this object, or on one that loaded what was saved, it goes on with the
    same part, and gives what it would have given without the interruption.
    """
