"""Public names of the package `strategies`, for projects that have a `strategies` of their own.

The names are those of ``strategies.__all__``, loaded when the first of them is asked for: importing this module imports
neither Avalanche nor torch. They come from the package that is installed next to `ht_ray`, whatever else has its name
in the working directory or on ``sys.path``. Where ``import strategies`` finds that package, the names are the same
objects; elsewhere it is loaded as ``ht_ray._strategies``, and what is pickled there can be read wherever `ht_ray` is.

Examples
--------
>>> from ht_ray.avalanche import HareTortoisePlugin
>>> HareTortoisePlugin.__name__
'HareTortoisePlugin'
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ht_ray._checks import did_you_mean


def __getattr__(name: str) -> Any:
    # The import system and inspect ask for names such as __path__, which must not load anything.
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    package = import_module("ht_ray._strategies")
    if name != "__all__" and name not in package.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{did_you_mean(name, package.__all__)}")
    value = getattr(package, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]
