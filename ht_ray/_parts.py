"""Parts of a user's own, named by the paths of modules: how they are imported, and which version of them it is."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

from ht_ray._checks import did_you_mean, refused

__all__ = ["is_path_of_part", "load_part", "version_of_part"]

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
