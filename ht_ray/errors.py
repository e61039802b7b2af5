"""Errors and warnings of the package; the standard library is all they need."""

from __future__ import annotations

from typing import Any

__all__ = ["Diverged", "Interrupted", "SettingError", "SettingWarning"]


class SettingError(ValueError):
    """A setting that cannot work.

    Command lines print its message, without a traceback, and exit with status 2. Where one setting is wrong, `owner`
    and `field` name it; a message of its own may take the place of the composed one.

    Parameters
    ----------
    message
        What to print. Default: made of what follows, ``"Tortoise: momentum = 2: accepted is ... Did you mean ...?"``.
    owner
        Whose setting it is, as the user knows it: ``"DataConfig"``.
    field
        The setting's name there.
    value
        What was given.
    accepted
        What would be accepted, as a phrase: ``"a number with 0 <= momentum < 1"``.
    hint
        What to do, a sentence.

    Examples
    --------
    >>> error = SettingError(owner="Tortoise", field="momentum", value=2, accepted="a number with 0 <= momentum < 1")
    >>> str(error)
    'Tortoise: momentum = 2: accepted is a number with 0 <= momentum < 1.'
    >>> error.owner, error.field, error.value
    ('Tortoise', 'momentum', 2)
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
    ) -> None:
        if message is None:
            where = ": ".join(part for part in (owner, field) if part is not None)
            message = f"{where} = {value!r}: accepted is {accepted}." + (f" {hint}" if hint else "")
        super().__init__(message)
        self.owner = owner
        self.field = field
        self.value = value
        self.accepted = accepted
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is pickled by its arguments alone, and some cross processes.
        return _setting_error, (str(self), self.owner, self.field, self.value, self.accepted, self.hint)


def _setting_error(message: str, owner: Any, field: Any, value: Any, accepted: Any, hint: str) -> SettingError:
    return SettingError(message, owner=owner, field=field, value=value, accepted=accepted, hint=hint)


class SettingWarning(UserWarning):
    """Settings that are accepted but can hardly do what they are for."""


class Diverged(ArithmeticError):
    """The training loss is no longer finite."""


class Interrupted(RuntimeError):
    """Raised where training stops because it was asked to, in the middle of a part, at a point where it can be saved.

    Nothing is reported then. Called again on this object, or on one that loaded what was saved, it goes on with the
    same part, and gives what it would have given without the interruption.
    """
