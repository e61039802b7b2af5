"""Keep networks plastic while they learn continually (Hare & Tortoise, arXiv 2406.02596).

Importing this package imports nothing else; each sub-package imports what it needs. `Study` and `Results` are loaded
when they are asked for.
"""

from typing import Any

__all__ = ["Results", "Study", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in ("Results", "Study"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module("tune_configs.study"), name)
    globals()[name] = value
    return value
