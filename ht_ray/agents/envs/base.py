"""Interfaces of a game, and of the settings that make one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

__all__ = ["Environment", "EnvironmentConfig"]

# Frames of bytes, or vectors in floating point.
_Frame = NDArray[Any]


class Environment(Protocol):
    """A game seen in stacks of frames, ``(stack, size, size)``, uint8, newest last; `AtariGame` is one.

    ``info`` holds ``score`` and ``steps``, of the whole game, with the step that ends it.
    """

    #: Its name.
    game: str
    #: How many actions there are.
    actions: int

    @property
    def observation(self) -> _Frame:
        """The latest observation."""

    def reset(self, *, seed: int | None = None) -> tuple[_Frame, dict[str, Any]]:
        """Start an episode; with a seed, a game that depends on nothing else."""

    def step(self, action: int) -> tuple[_Frame, float, bool, bool, dict[str, Any]]:
        """Return observation, reward, whether the episode terminated, whether it was truncated, and ``info``."""

    def get_state(self) -> dict[str, Any]:
        """Return tensors, bytes and plain data to continue from."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""


class EnvironmentConfig(Protocol):
    """Settings of a game, a frozen dataclass; `AtariConfig` is one."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def size(self) -> int:
        """Height and width of a frame."""

    @property
    def stack(self) -> int:
        """Frames in an observation."""

    def make(self, game: str, *, seed: int = 0) -> Environment:
        """Return a game by its name."""

    def evaluation(self) -> EnvironmentConfig:
        """Return these settings as whole games are scored: nothing clipped or cut short."""
