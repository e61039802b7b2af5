"""Parts of a user's own, named by the paths of modules: how they are imported and called, and which version it is."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ht_ray._checks import did_you_mean, refused
from ht_ray.errors import SettingError

__all__ = ["is_path_of_part", "load_function", "load_part", "own_code", "version_of_part"]

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_path_of_part(text: str) -> bool:
    """Whether a text reads as ``"package.module:name"``.

    Examples
    --------
    >>> is_path_of_part("my_package.nets:make_network"), is_path_of_part("mlp"), is_path_of_part("C:/data")
    (True, False, False)
    """
    return _PATH.fullmatch(text) is not None


def load_part(owner: str, field: str, path: str) -> Any:
    """Return what ``"package.module:name"`` names.

    Parameters
    ----------
    owner, field
        The setting that names it, for refusals.
    path
        The path.

    Raises
    ------
    SettingError
        If the module cannot be imported, or has nothing of this name.
    """
    module, _, name = path.partition(":")
    refuse = partial(refused, f"{owner}.{field}", path)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            why = (
                ": there is no module {missing!r}; accepted is 'package.module:name', with a module that Python finds "
            )
            raise refuse(why + "here and on every node.", missing=error.name) from error
        raise refuse(": importing {module} failed: {error}.", module=module, error=str(error)) from error
    except Exception as error:  # of a user's own code, whatever it raises
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise refuse(": importing {module} failed: {text}.", module=module, text=text) from error
    for part in name.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, [one for one in dir(found) if not one.startswith("_")])
            raise refuse(": the module {module} has no {name}.{near}", module=module, name=name, near=hint)
        found = getattr(found, part)
    return found


def load_function(owner: str, field: str, path: str, of: str, **arguments: Any) -> Callable[..., Any]:
    """Return the function that ``"package.module:name"`` names.

    Parameters
    ----------
    owner, field, path
        As of `load_part`.
    of
        What it is a function of, in words: ``"shape and num_classes"``.
    **arguments
        Such as it is called with, to see whether it can be; none: it is not looked at.

    Raises
    ------
    SettingError
        As for `load_part`, and if it is no function, or none of these arguments.
    """
    found = load_part(owner, field, path)
    refuse = partial(refused, f"{owner}.{field}", path)
    if not callable(found):
        raise refuse(f": accepted is a function of {of}; it is {{what!r}}.", what=found)
    if arguments:
        try:
            inspect.signature(found).bind(**arguments)
        except TypeError as error:
            raise refuse(f": it is called with {of}, and cannot be: {{text}}.", text=str(error)) from error
    return found


@contextmanager
def own_code(where: str, value: object, reason: str, **values: Any) -> Iterator[None]:
    """Run code of a user's own in a block, and refuse the setting that names it where it raises something.

    Parameters
    ----------
    where, value, reason, **values
        As of `ht_ray._checks.refused`; ``{text}`` in the reason says what was raised.

    Raises
    ------
    SettingError
        That refusal, or the code's own.
    """
    try:
        yield
    except SettingError:
        raise
    except Exception as error:  # whatever it is
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        raise refused(where, value, reason, text=text, **values) from error


def version_of_part(owner: str, field: str, path: str) -> str:
    """Return a hash of the source file of what ``"package.module:name"`` names.

    Raises
    ------
    SettingError
        As for `load_part`, and if the file cannot be read.
    """
    part = load_part(owner, field, path)
    module = importlib.import_module(path.partition(":")[0])
    try:
        # Of what is only imported there, the file in which it is written.
        file = inspect.getsourcefile(inspect.unwrap(part))
    except TypeError:
        file = None
    file = file or getattr(module, "__file__", None)
    if file is None:
        raise refused(f"{owner}.{field}", path, ": its module has no source file.")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
