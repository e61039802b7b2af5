"""Old names of settings: accepted until the next minor version, with a warning that names the new one."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ht_ray._checks import did_you_mean
from ht_ray.errors import SettingError, SettingWarning

__all__ = ["current_names", "old_names", "renamed"]

T = TypeVar("T", bound=type)


def current_names(
    owner: str, given: Mapping[str, Any], renamed: Mapping[str, str], known: Mapping[str, Any], *, stacklevel: int = 3
) -> dict[str, Any]:
    """Return settings under their present names; a warning names the new one of each that has changed.

    Parameters
    ----------
    owner : str
        Whose settings they are, in messages.
    given : mapping
        Values by name, old or new.
    renamed : mapping
        New names by old ones.
    known : mapping
        All settings, by their present names.
    stacklevel : int, default 3
        Of the warning, as `warnings.warn` has it: the caller of the caller.

    Raises
    ------
    SettingError
        If a name is unknown, or one setting is given by both names.
    """
    values: dict[str, Any] = {}
    for name, value in given.items():
        new = name if name in known else renamed.get(name, name)
        if new not in known:
            hint = did_you_mean(name, known)
            raise SettingError(
                f"{owner} has no setting {name!r}.{hint}", owner=owner, field=name, value=value, hint=hint.strip()
            )
        if new != name:
            _warn(owner, name, new, stacklevel + 1)
        if new in values:
            raise SettingError(f"{owner}: {name!r} and {new!r} are the same setting: accepted is {new!r}.")
        values[new] = value
    return values


def _warn(owner: str, old: str, new: str, stacklevel: int) -> None:
    warnings.warn(
        f"{owner}: the setting {old!r} is called {new!r} now; the old name goes with the next minor version.",
        SettingWarning,
        stacklevel=stacklevel,
    )


def renamed(**names: str) -> Callable[[T], T]:
    """Let a class accept settings by their old names, as keywords and as attributes; a decorator, above `dataclass`.

    A class that is derived from it and has an ``__init__`` of its own, as dataclasses have, is decorated too: with
    ``renamed()`` if it has no more names. `dataclasses.replace` takes present names only.

    Parameters
    ----------
    **names : str
        New names by old ones.

    Examples
    --------
    >>> import warnings
    >>> from dataclasses import dataclass
    >>> @renamed(lr="learning_rate")
    ... @dataclass(frozen=True)
    ... class Config:
    ...     learning_rate: float = 0.1
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     Config(lr=0.5), Config().lr
    (Config(learning_rate=0.5), 0.1)
    >>> print(caught[0].message)
    Config: the setting 'lr' is called 'learning_rate' now; the old name goes with the next minor version.
    """

    def decorate(cls: T) -> T:
        every = {**old_names(cls), **names}
        make = cls.__init__  # type: ignore[misc]

        @functools.wraps(make)
        def __init__(self: Any, *args: Any, **given: Any) -> None:
            if given.keys() & every.keys():
                # What is unknown is for the class itself to refuse.
                known = dict.fromkeys((given.keys() - every.keys()) | set(every.values()))
                given = current_names(cls.__name__, given, every, known)
            make(self, *args, **given)

        def __getattr__(self: Any, name: str) -> Any:
            if name not in every:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            _warn(cls.__name__, name, every[name], 3)
            return getattr(self, every[name])

        for name, value in (("__init__", __init__), ("__getattr__", __getattr__), ("__old_names__", every)):
            setattr(cls, name, value)
        return cls

    return decorate


def old_names(cls: type) -> Mapping[str, str]:
    """Return the new names of the settings of a class that `renamed` decorated, by their old ones.

    Examples
    --------
    >>> old_names(int)
    {}
    """
    found: Mapping[str, str] = getattr(cls, "__old_names__", {})
    return found
