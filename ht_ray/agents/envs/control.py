"""Control: gymnasium's CartPole, Acrobot and MountainCar, whose world can be changed, with the interface of a game."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium.envs.classic_control import AcrobotEnv, CartPoleEnv, MountainCarEnv
from numpy.typing import NDArray

from ht_ray._checks import check_choice, check_number, refused
from ht_ray.mechanisms.weights.rng import derive_seed

__all__ = ["CONTROL", "ControlConfig", "ControlGame"]

Vector = NDArray[np.float32]


class _Problem(NamedTuple):
    """A problem of gymnasium: its class, the middle and half the range of what is seen, and what can be changed."""

    env: type[Any]
    middle: tuple[float, ...]
    scale: tuple[float, ...]
    #: Attributes by what they are called here.
    dynamics: Mapping[str, str]


#: The problems by name. Observations are divided by these scales, so that they are about 1.
CONTROL: Mapping[str, _Problem] = {
    "CartPole": _Problem(
        CartPoleEnv,
        (0.0,) * 4,
        (2.4, 3.0, 0.21, 3.0),
        {"gravity": "gravity", "mass": "masspole", "length": "length", "force": "force_mag"},
    ),
    "Acrobot": _Problem(
        AcrobotEnv,
        (0.0,) * 6,
        (1.0, 1.0, 1.0, 1.0, 4 * np.pi, 9 * np.pi),
        {"mass": "LINK_MASS_2", "length": "LINK_LENGTH_1", "inertia": "LINK_MOI"},
    ),
    "MountainCar": _Problem(MountainCarEnv, (-0.3, 0.0), (0.9, 0.07), {"gravity": "gravity", "force": "force"}),
}


@dataclass(frozen=True)
class ControlConfig:
    """How a problem is played and seen; in training and evaluation alike.

    Raises
    ------
    SettingError
        If a setting is not accepted.

    Examples
    --------
    >>> game = ControlConfig(order=(3, 2, 1, 0), signs=(1, -1, 1, 1), dynamics={"length": 2.0}).make("CartPole")
    >>> game.reset(seed=0)[0].shape, game.actions
    ((1, 4), 2)
    >>> ControlConfig(dynamics={"lenght": 2.0}).make("CartPole")
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: ControlConfig.dynamics = 'lenght': accepted are 'gravity', 'mass', 'length', 'force'. \
Did you mean 'length'?
    """

    #: A game is cut off (truncated, not terminated) after so many steps.
    max_steps: int = 200
    #: Factors of what the problem's world is made of: CartPole's gravity, mass, length, force; Acrobot's mass, length,
    #: inertia; MountainCar's gravity, force.
    dynamics: Mapping[str, float] | None = None
    #: Which number of the observation is seen in each place; None: as they are.
    order: tuple[int, ...] | None = None
    #: Factors, 1 or -1, of what is seen in each place; None: 1.
    signs: tuple[int, ...] | None = None
    #: The factor of rewards, 1 or -1.
    reward_sign: Literal[1, -1] = 1

    def __post_init__(self) -> None:
        check_number("ControlConfig.max_steps", self.max_steps, low=1, integer=True)
        for value in (self.dynamics or {}).values():
            check_number("ControlConfig.dynamics: a factor", value, low=0, low_open=True)
        if self.reward_sign not in (1, -1):
            raise refused("ControlConfig.reward_sign", self.reward_sign, accepted="1 or -1")
        for name in ("order", "signs"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        if any(sign not in (1, -1) for sign in self.signs or ()):
            raise refused("ControlConfig.signs", self.signs, accepted="1 and -1")

    @property
    def size(self) -> int:
        """Not known before there is a problem: observations are vectors."""
        return 1

    @property
    def stack(self) -> int:
        """Observations in one that the agent sees."""
        return 1

    def make(self, game: str, *, seed: int = 0) -> ControlGame:
        """Return a problem by its name.

        Raises
        ------
        SettingError
            If there is no such problem, or a setting does not fit it.
        """
        return ControlGame(game, self, seed=seed)

    def evaluation(self) -> ControlConfig:
        """Return the same settings."""
        return self


class ControlGame:
    """One of gymnasium's control problems, seen as a stack of one vector of float32, ``(1, D)``.

    Every game starts from a seed of its own, derived from the seed and the number of the game.

    Parameters
    ----------
    game : str
        A name in `CONTROL`.
    config : ControlConfig or None, default None
        The world; None: the problem as it is published.
    seed : int, default 0
        Seed of the draws, until `reset` is given another.

    Raises
    ------
    SettingError
        If there is no such problem, or a setting does not fit it.
    """

    def __init__(self, game: str, config: ControlConfig | None = None, *, seed: int = 0) -> None:
        self.game = check_choice("game", game, CONTROL)
        self.config = config or ControlConfig()
        problem = CONTROL[game]
        self._env = problem.env()
        size = len(problem.scale)
        self.actions = int(self._env.action_space.n)
        for name, factor in (self.config.dynamics or {}).items():
            attribute = problem.dynamics[check_choice("ControlConfig.dynamics", name, problem.dynamics)]
            setattr(self._env, attribute, getattr(self._env, attribute) * factor)
        if game == "CartPole":  # it keeps what follows from these
            self._env.total_mass = self._env.masspole + self._env.masscart
            self._env.polemass_length = self._env.masspole * self._env.length
        order = self.config.order or tuple(range(size))
        if sorted(order) != list(range(size)):
            raise refused("ControlConfig.order", order, accepted=f"each of 0 to {size - 1} once for {game}")
        signs = self.config.signs or (1,) * size
        if len(signs) != size:
            raise refused("ControlConfig.signs", signs, accepted=f"{size} of them for {game}")
        self._order = np.array(order)
        self._middle = np.array(problem.middle, np.float32)[self._order]
        self._factors = (np.array(signs) / np.array(problem.scale)[self._order]).astype(np.float32)
        self._seen: Vector = np.zeros((1, size), np.float32)
        self._seed = seed
        self._games = self._steps = 0
        self._score = 0.0
        self._running = False

    @property
    def observation(self) -> Vector:
        """The latest observation, a copy."""
        return self._seen.copy()

    def reset(self, *, seed: int | None = None) -> tuple[Vector, dict[str, Any]]:
        """Start a game; with a `seed`, one that depends on nothing else."""
        if seed is not None:
            self._seed, self._games = seed, 0
        raw, _ = self._env.reset(seed=derive_seed(self._seed, "control game", self._games) % 2**32)
        self._games += 1
        self._steps, self._score, self._running = 0, 0.0, True
        return self._see(raw), {}

    def step(self, action: int) -> tuple[Vector, float, bool, bool, dict[str, Any]]:
        """Return observation, reward, whether the game is over, whether it was cut off, and ``info``.

        Raises
        ------
        RuntimeError
            If the game has ended, or none has started.
        """
        if not self._running:
            raise RuntimeError("ControlGame.step: the game has ended or none has started; call reset() first")
        raw, reward, terminated, _, _ = self._env.step(int(action))
        reward = float(reward) * self.config.reward_sign
        self._steps += 1
        self._score += reward
        truncated = not terminated and self._steps >= self.config.max_steps
        self._running = not (terminated or truncated)
        info = {} if self._running else {"score": self._score, "steps": self._steps}
        return self._see(raw), reward, bool(terminated), truncated, info

    def _see(self, raw: NDArray[Any]) -> Vector:
        self._seen = ((raw[self._order] - self._middle) * self._factors).astype(np.float32)[None]
        return self._seen

    def get_state(self) -> dict[str, Any]:
        """Return plain data to continue from, at any point of a game."""
        state = getattr(self._env, "state", None)
        return {
            "game": self.game,
            "config": _plain(self.config),
            "state": None if state is None else [float(value) for value in state],
            "seen": self._seen.tolist(),
            **{name: getattr(self, f"_{name}") for name in ("seed", "games", "steps", "score", "running")},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `get_state` returned.

        Raises
        ------
        ValueError
            If `state` is of another problem or world; nothing is changed then.
        """
        if (state["game"], state["config"]) != (self.game, _plain(self.config)):
            raise ValueError(f"the state is of {state['game']} under {state['config']}, this is another world")
        self._env.state = None if state["state"] is None else np.array(state["state"])
        if self.game == "CartPole":
            self._env.steps_beyond_terminated = None
        self._seen = np.array(state["seen"], np.float32)
        for name in ("seed", "games", "steps", "score", "running"):
            setattr(self, f"_{name}", state[name])


def _plain(config: ControlConfig) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
