"""Postponed imports: modules that others import at their beginning, and of which seldom anything is used.

A postponed module is executed when something of it is asked for that has no stand-in. The standard library only.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["postpone", "postpone_dynamo"]

_LOCK = threading.RLock()
# What the import system, and who looks through all modules, may ask for.
_OF_EVERY_MODULE = {"__class__", "__dict__", "__doc__", "__file__", "__loader__", "__name__", "__package__", "__spec__"}


class _Postponed(ModuleType):
    """A module before it is executed."""

    def __getattribute__(self, name: str) -> Any:
        if name in _OF_EVERY_MODULE:
            return super().__getattribute__(name)
        loader: Any = super().__getattribute__("__spec__").loader
        with _LOCK:
            if type(self) is _Postponed:
                if name in loader.stand_ins:
                    return loader.stand_ins[name]
                loader.execute(self)
        return getattr(self, name)


class _Postponing(Loader, MetaPathFinder):
    """Finds one module, and executes it when it is needed."""

    def __init__(self, name: str, stand_ins: dict[str, Any]) -> None:
        self.name = name
        self.stand_ins = stand_ins
        self.own: Loader | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self.name:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self.own, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        module.__class__ = _Postponed

    def execute(self, module: ModuleType) -> None:
        assert self.own is not None and module.__spec__ is not None
        module.__class__ = ModuleType
        module.__loader__ = module.__spec__.loader = self.own
        try:
            self.own.exec_module(module)
        except BaseException:
            # As an import that fails: the next one tries again.
            sys.modules.pop(self.name, None)
            raise


def postpone(name: str, **stand_ins: Any) -> None:
    """Postpone the import of a module, unless it is imported already.

    Parameters
    ----------
    name
        The module's.
    **stand_ins
        What is given of the module as long as it is not executed.
    """
    known = any(isinstance(finder, _Postponing) and finder.name == name for finder in sys.meta_path)
    if name not in sys.modules and not known:
        sys.meta_path.insert(0, _Postponing(name, stand_ins))


def postpone_dynamo() -> None:
    """Let PyTorch's optimizers do without ``torch._dynamo``, its compiler, until something is compiled.

    They import it, which takes seconds, to say what it shall leave alone.
    """
    name = "torch._dynamo"

    def disable(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Callable[..., Any]:
        disabled: Callable[..., Any] | None = None

        def call(*given: Any, **named: Any) -> Any:
            nonlocal disabled
            if disabled is None and type(sys.modules.get(name)) is not _Postponed:
                import torch._dynamo

                disabled = torch._dynamo.disable(function, *arguments, **settings)
            return (disabled or function)(*given, **named)

        return call

    def graph_break(*message: Any, **settings: Any) -> None:
        """Do nothing: there is no graph."""

    postpone(name, disable=disable, graph_break=graph_break)
