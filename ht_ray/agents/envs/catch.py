"""Catch: a game in small pixels that is learned in minutes on a CPU, with the interface of an Atari game."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ht_ray._checks import check_fields, did_you_mean
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.rng import derive_seed

__all__ = ["CatchConfig", "CatchGame"]

Frame = NDArray[np.uint8]

#: Left, stay, right.
_MOVES = (-1, 0, 1)


@dataclass(frozen=True)
class CatchConfig:
    """How Catch is played and seen; in training and evaluation alike.

    Raises
    ------
    SettingError
        If a setting is out of its range.
    """

    #: Columns and rows of the field.
    cells: int = 12
    #: Pixels along a cell.
    pixels: int = 3
    #: Columns that the paddle covers.
    paddle: int = 2
    #: Balls in a game.
    balls: int = 5
    #: Frames in an observation.
    stack: int = 2

    def __post_init__(self) -> None:
        check_fields(self, "pixels", "paddle", "balls", "stack", low=1, integer=True)
        check_fields(self, "cells", low=self.paddle + 1, integer=True)

    @property
    def size(self) -> int:
        """Height and width of a frame."""
        return self.cells * self.pixels

    def make(self, game: str, *, seed: int = 0) -> CatchGame:
        """Return the game, which is called "Catch".

        Raises
        ------
        SettingError
            If `game` is another.
        """
        if game.lower() != "catch":
            raise SettingError(f"game = {game!r}: accepted is 'Catch'.{did_you_mean(game, ['Catch'])}")
        return CatchGame(self, seed=seed)

    def evaluation(self) -> CatchConfig:
        """Return the same settings."""
        return self


class CatchGame:
    """Balls fall one by one, a cell per step; a ball that lands on the paddle is worth 1, another -1.

    A ball drifts: it moves sideways by a random -1, 0 or 1 that it keeps, and bounces off the walls, so that a single
    frame does not tell where it lands. The paddle moves by a cell. A game is an episode of ``balls`` balls.

    Parameters
    ----------
    config : CatchConfig or None, default None
        The game's settings; None: the defaults of `CatchConfig`.
    seed : int, default 0
        Seed of the draws, until `reset` is given another.

    Examples
    --------
    >>> game = CatchGame(CatchConfig(balls=1))
    >>> observation, info = game.reset(seed=0)
    >>> observation.shape, sorted(set(observation[-1].flatten().tolist()))
    ((2, 36, 36), [0, 128, 255])
    >>> ended = False
    >>> while not ended:
    ...     observation, reward, ended, truncated, info = game.step(1)
    >>> info["steps"], info["score"] == reward
    (11, True)
    """

    game = "Catch"
    actions = len(_MOVES)

    def __init__(self, config: CatchConfig | None = None, *, seed: int = 0) -> None:
        self.config = config or CatchConfig()
        self._seed = seed
        self._stack = np.zeros((self.config.stack, self.config.size, self.config.size), np.uint8)
        #: Games started, balls that have fallen, steps and score of this game; cells of ball and paddle; its drift.
        self._games = self._balls = self._steps = 0
        self._score = 0.0
        self._row = self._column = self._drift = self._paddle = 0
        self._running = False
        self._new_generator()

    @property
    def observation(self) -> Frame:
        """The latest observation, a copy."""
        return self._stack.copy()

    def reset(self, *, seed: int | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start a game; with a `seed`, one that depends on nothing else."""
        if seed is not None:
            self._seed, self._games = seed, 0
        self._new_generator()
        self._games += 1
        self._balls = self._steps = 0
        self._score = 0.0
        self._paddle = (self.config.cells - self.config.paddle) // 2
        self._running = True
        self._drop()
        self._stack[:] = 0
        self._see()
        return self.observation, {}

    def step(self, action: int | np.integer[Any]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Move the paddle left (0), not at all (1) or right (2), and let the ball fall by a cell.

        Raises
        ------
        RuntimeError
            If the game has ended, or none has started.
        """
        if not self._running:
            raise RuntimeError("CatchGame.step: the game has ended or none has started; call reset() first")
        config = self.config
        self._paddle = min(max(self._paddle + _MOVES[int(action)], 0), config.cells - config.paddle)
        if not 0 <= self._column + self._drift < config.cells:
            self._drift = -self._drift
        self._column += self._drift
        self._row += 1
        self._steps += 1
        reward = 0.0
        landed = self._row == config.cells - 1
        if landed:
            reward = 1.0 if 0 <= self._column - self._paddle < config.paddle else -1.0
            self._balls += 1
        self._score += reward
        self._stack[:-1] = self._stack[1:]
        self._see()
        self._running = self._balls < config.balls
        if landed and self._running:
            self._drop()
        info = {} if self._running else {"score": self._score, "steps": self._steps}
        return self.observation, reward, not self._running, False, info

    def get_state(self) -> dict[str, Any]:
        """Return tensors and plain data to continue from, at any point of a game."""
        names = ("seed", "games", "balls", "steps", "score", "row", "column", "drift", "paddle", "running")
        return {
            "config": asdict(self.config),
            "stack": torch.from_numpy(self._stack.copy()),
            "generator": self._generator.bit_generator.state,
            **{name: getattr(self, f"_{name}") for name in names},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `get_state` returned.

        Raises
        ------
        ValueError
            If `state` is of other settings; nothing is changed then.
        """
        if state["config"] != asdict(self.config):
            raise ValueError(f"the state is of Catch under {state['config']}, this is Catch under {self.config}")
        self._stack[:] = state["stack"].numpy()
        self._generator.bit_generator.state = state["generator"]
        for name in state.keys() - {"config", "stack", "generator"}:
            setattr(self, f"_{name}", state[name])

    def _new_generator(self) -> None:
        self._generator = np.random.default_rng(derive_seed(self._seed, "catch game", self._games))

    def _drop(self) -> None:
        self._row, self._column = 0, int(self._generator.integers(self.config.cells))
        self._drift = int(self._generator.integers(-1, 2))

    def _see(self) -> None:
        cells = np.zeros((self.config.cells, self.config.cells), np.uint8)
        cells[-1, self._paddle : self._paddle + self.config.paddle] = 128
        cells[self._row, self._column] = 255
        self._stack[-1] = cells.repeat(self.config.pixels, 0).repeat(self.config.pixels, 1)
