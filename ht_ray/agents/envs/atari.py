"""Atari: a game as Atari-100k's protocol has it, over ale_py directly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import ale_py
import cv2
import gymnasium
import numpy as np
import torch
from ale_py import roms
from numpy.typing import NDArray

from ht_ray._checks import check_choice, check_fields, refused
from ht_ray.agents.envs.games import game_name, rom_name
from ht_ray.mechanisms.weights.rng import derive_seed

__all__ = ["PUBLISHED_PROTOCOLS", "AtariConfig", "AtariGame"]

Frame = NDArray[np.uint8]

# What a game's state has of plain data.
_PLAIN = ("seed", "games", "lives", "steps", "score", "last_action", "running", "goes_on")


@dataclass(frozen=True)
class AtariConfig:
    """How a game is played and seen. The defaults are Atari-100k's, in training.

    Raises
    ------
    SettingError
        If a setting is out of its range.
    """

    #: Emulated frames for which an action is repeated; the last two are pooled by their maximum.
    frame_skip: int = 4
    #: A game starts with so many no-ops at most, drawn uniformly from 0 on; each is one emulated frame.
    noops: int = 30
    #: Probability that an emulated frame repeats the action of the frame before. Atari-100k has none.
    sticky: float = 0.0
    #: Whether losing a life ends the episode; the game goes on in the next one.
    life_loss: bool = True
    #: Whether rewards are -1, 0 or 1; the game's own are in ``info["reward"]``.
    clip_rewards: bool = True
    #: A game is cut off (truncated, not terminated) after so many steps, over all its lives.
    max_steps: int = 27_000
    #: Height and width of a frame.
    size: int = 84
    #: Frames in an observation.
    stack: int = 4
    #: What a no-op is: "steps": a whole step of `frame_skip` frames, as in BBF's published code; "stale": a frame that
    #: is not looked at, so that a game's first observation is from before its no-ops, as in Dopamine's runner with a
    #: fixed number of evaluated games; None: a frame.
    noop_kind: Literal["steps", "stale"] | None = None
    #: "clear": in evaluation, too, a lost life ends the step at once and empties the stack, as in Dopamine and BBF;
    #: None: it does nothing there.
    evaluated_lives: Literal["clear"] | None = None
    #: "full": the 18 actions of the console, the same for all games; None: the game's minimal set.
    action_set: Literal["full"] | None = None
    #: The game's mode and difficulty, as the console's switches have them; None: its default.
    mode: int | None = None
    difficulty: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("action_set", ["full"]),
            ("noop_kind", ["steps", "stale"]),
            ("evaluated_lives", ["clear"]),
        ):
            if getattr(self, name) is not None:
                check_choice(f"AtariConfig.{name}", getattr(self, name), choices)
        check_fields(self, "frame_skip", "max_steps", "size", "stack", low=1, integer=True)
        check_fields(self, "noops", low=0, integer=True)
        check_fields(self, "sticky", low=0, high=1, high_open=True)

    def make(self, game: str, *, seed: int = 0) -> AtariGame:
        """Return one of the games."""
        return AtariGame(game, self, seed=seed)

    def evaluation(self) -> AtariConfig:
        """Return these settings for whole games and unclipped scores."""
        return replace(self, life_loss=False, clip_rewards=False)


#: Protocols by the variants of agents that were published with them: DrQ(eps) in Dopamine, BBF of 2023 and of 2025.
PUBLISHED_PROTOCOLS: Mapping[str, AtariConfig] = MappingProxyType(
    {
        "drq-published": AtariConfig(noops=29, noop_kind="stale", evaluated_lives="clear"),
        "bbf-published-2023": AtariConfig(noops=29, noop_kind="steps", evaluated_lives="clear"),
        "bbf-published-2025": AtariConfig(noops=29, noop_kind="steps", evaluated_lives="clear"),
    }
)


class AtariGame(gymnasium.Env[Frame, np.int64]):
    """One of the 26 games of Atari-100k, as a gymnasium environment.

    Frames, rewards and ends are those of gymnasium's ``AtariPreprocessing`` over ``frameskip=1``, bit for bit: grey;
    the last two frames of a step pooled by their maximum and shrunk by area; a step ends at once when a life is lost,
    and then shows what was pooled before. Dopamine's differ in one case, a life lost in the last of a step's frames,
    where it pools again from the last frame alone of the step before. Observations are stacks of the latest
    frames, newest last. At a start the frames before the first are zero, as Dopamine and SPR have it. There is no
    FIRE at a start.

    After a lost life (``terminated``, with ``life_loss``) `reset` does not touch the emulator: the next episode starts
    with the frame that ended the last one. Otherwise `reset` starts a new game.

    Actions are the game's minimal set. ``info`` holds ``reward`` (of this step, as the game gave it) and ``lives``;
    when a game is over or cut off also ``score`` (the sum of those rewards) and ``steps``, of the whole game.

    The emulator itself is deterministic: no-ops and sticky actions are drawn here, from a generator derived from the
    seed and the number of the game.

    Parameters
    ----------
    game : str
        Its name, as `game_name` takes it.
    config : AtariConfig or None, default None
        The protocol. Default: `AtariConfig`'s.
    seed : int, default 0
        Seed of the draws, until `reset` is given another.

    Raises
    ------
    SettingError
        If there is no such game.

    References
    ----------
    Mnih et al. (2015). Human-level control through deep reinforcement learning. Nature 518.
    Castro et al. (2018). Dopamine. arXiv:1812.06110 (``AtariPreprocessing``; its Atari-100k evaluation draws
    0 to 29 no-ops, gymnasium 1 to 30).
    Kaiser et al. (2020). Model-based reinforcement learning for Atari. arXiv:1903.00374.

    Examples
    --------
    >>> env = AtariGame("Pong")
    >>> observation, info = env.reset(seed=0)
    >>> observation.shape, observation.dtype, int(observation[:3].max())
    ((4, 84, 84), dtype('uint8'), 0)
    >>> observation, reward, terminated, truncated, info = env.step(0)
    >>> reward, terminated, truncated, info
    (0.0, False, False, {'reward': 0.0, 'lives': 0})
    """

    metadata = {"render_modes": []}  # noqa: RUF012 - declared so by gymnasium

    def __init__(self, game: str, config: AtariConfig | None = None, *, seed: int = 0) -> None:
        self.game = game_name(game)
        self.config = config or AtariConfig()
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        # The emulator's own sticky actions are not used: its saved states lack the action that would be repeated.
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.setInt("random_seed", 0)
        self._ale.loadROM(roms.get_rom_path(rom_name(game)))
        self._set_switches()
        self._power_on = self._ale.cloneState(include_rng=True)
        full = self.config.action_set == "full"
        self._actions = self._ale.getLegalActionSet() if full else self._ale.getMinimalActionSet()
        size, stack = self.config.size, self.config.stack
        #: How many actions there are.
        self.actions = len(self._actions)
        self.action_space = gymnasium.spaces.Discrete(self.actions)
        self.observation_space = gymnasium.spaces.Box(0, 255, (stack, size, size), np.uint8)
        screen = self._ale.getScreenDims()
        #: What is pooled: the last frame (and, once pooled, the maximum), and the one before.
        self._screen, self._screen_before = np.zeros(screen, np.uint8), np.zeros(screen, np.uint8)
        self._stack = np.zeros((stack, size, size), np.uint8)
        self._seed = seed
        self._games = 0
        self._new_generator()
        self._lives = self._steps = self._last_action = 0
        self._score = 0.0
        #: Whether a step may follow, and whether a reset goes on with the game.
        self._running = self._goes_on = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frame, dict[str, Any]]:
        """Start an episode: of the same game after a lost life, of a new one otherwise.

        Parameters
        ----------
        seed : int or None, default None
            Seed of all draws from now on. Given, a new game starts in any case, as if the console were switched on:
            without it a few games remember what was played before.
        options : dict[str, Any] or None, default None
            None are known; ignored.

        Returns
        -------
        observation
            ``(stack, size, size)``, uint8: zeros but for the newest frame.
        info
            ``lives``.
        """
        super().reset(seed=seed)
        if seed is not None:
            self._seed, self._games = seed, 0
            self._ale.restoreState(self._power_on)
        if seed is not None or not self._goes_on:
            self._start_game()
        self._running, self._goes_on = True, False
        self._stack[:-1] = 0
        return self._stack.copy(), {"lives": self._lives}

    def step(self, action: int | np.integer[Any]) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Play `action` for ``frame_skip`` frames, fewer when a life or the game is lost.

        Returns
        -------
        observation
            ``(stack, size, size)``, uint8; a new array.
        reward
            Clipped, unless the configuration says otherwise.
        terminated
            The game is over, or (with ``life_loss``) a life is lost: nothing is to be bootstrapped from here.
        truncated
            The game was cut off: the value of `observation` is to be bootstrapped.
        info
            See the class.

        Raises
        ------
        RuntimeError
            If the episode has ended, or none has started.
        ValueError
            If there is no such action.
        """
        if not self._running:
            raise RuntimeError("AtariGame.step: the episode has ended or none has started; call reset() first")
        config, ale = self.config, self._ale
        chosen = int(action)
        if not 0 <= chosen < self.actions:
            raise ValueError(f"AtariGame.step: action = {chosen}: {self.game} has actions 0 to {self.actions - 1}")
        reward = 0.0
        terminated = over = lost = False
        for frame in range(config.frame_skip):
            if not config.sticky or self._generator.random() >= config.sticky:
                self._last_action = chosen
            reward += ale.act(self._actions[self._last_action])
            over = ale.game_over(with_truncation=False)
            lives = ale.lives()
            lost = lives < self._lives and (config.life_loss or config.evaluated_lives == "clear")
            terminated = over or (config.life_loss and lost)
            self._lives = lives
            if over or lost:
                break
            if frame == config.frame_skip - 2:
                ale.getScreenGrayscale(self._screen_before)
            elif frame == config.frame_skip - 1:
                ale.getScreenGrayscale(self._screen)
        self._stack[:-1] = 0 if lost and not terminated else self._stack[1:]
        self._see()
        self._steps += 1
        self._score += reward
        truncated = not over and self._steps >= config.max_steps
        info: dict[str, Any] = {"reward": reward, "lives": self._lives}
        if over or truncated:
            info |= {"score": self._score, "steps": self._steps}
        self._running = not (terminated or truncated)
        self._goes_on = terminated and not (over or truncated)
        return (
            self._stack.copy(),
            float(np.sign(reward)) if config.clip_rewards else reward,
            terminated,
            truncated,
            info,
        )

    def get_state(self) -> dict[str, Any]:
        """Return tensors, bytes and plain data to continue from, at any point of an episode.

        ``torch.load(..., weights_only=True)`` reads it. The generator of ``action_space`` is not part of it.
        """
        return {
            "game": self.game,
            "config": asdict(self.config),
            "emulator": self._ale.cloneState(include_rng=True).serialize(),
            "screen": torch.from_numpy(self._screen.copy()),
            "stack": torch.from_numpy(self._stack.copy()),
            "generator": self._generator.bit_generator.state,
            **{name: getattr(self, f"_{name}") for name in _PLAIN},
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `get_state` returned, in this process or another, frame by frame the same.

        Raises
        ------
        ValueError
            If `state` is of another game or configuration; nothing is changed then.
        """
        # Settings that an earlier version had not are at their defaults there.
        there = {**asdict(AtariConfig()), **state["config"]}
        if (state["game"], there) != (self.game, asdict(self.config)):
            raise ValueError(
                f"the state is of {state['game']} under {state['config']}, this is {self.game} under {self.config}"
            )
        # An emulator that has not drawn a frame yet would start with half of one: Qbert's course depends on it.
        self._ale.reset_game()
        self._ale.act(ale_py.Action.NOOP)
        self._ale.restoreState(ale_py.ALEState(state["emulator"]))
        # The earlier screen is nowhere brighter than the pooled one, and so adds nothing to it.
        self._screen[:], self._screen_before[:] = state["screen"].numpy(), 0
        self._stack[:] = state["stack"].numpy()
        self._generator.bit_generator.state = state["generator"]
        for name in _PLAIN:
            setattr(self, f"_{name}", state[name])

    @property
    def observation(self) -> Frame:
        """The latest observation, a copy: what the agent sees next after `set_state`."""
        return self._stack.copy()

    def _set_switches(self) -> None:
        for name, known, turn in (
            ("mode", self._ale.getAvailableModes, self._ale.setMode),
            ("difficulty", self._ale.getAvailableDifficulties, self._ale.setDifficulty),
        ):
            value = getattr(self.config, name)
            if value is None:
                continue
            if value not in known():
                listed = ", ".join(map(str, known()))
                raise refused(f"AtariConfig.{name}", value, accepted=f"one of {listed} for {self.game}")
            turn(value)
            self._ale.reset_game()  # the switch is read then

    def _new_generator(self) -> None:
        self._generator = np.random.default_rng(derive_seed(self._seed, "atari game", self._games))

    def _start_game(self) -> None:
        self._ale.reset_game()
        self._new_generator()
        self._games += 1
        kind, noops = self.config.noop_kind, self._generator.integers(self.config.noops + 1)
        if kind is not None:
            self._look()
        for _ in range(noops):
            if kind == "steps":
                self._wait()
                continue
            self._ale.act(ale_py.Action.NOOP)
            if kind is None and self._ale.game_over(with_truncation=False):
                self._ale.reset_game()
        if kind == "stale" and self._ale.game_over(with_truncation=False):
            self._ale.reset_game()
            self._look()
        self._lives = self._ale.lives()
        self._steps, self._score, self._last_action = 0, 0.0, 0
        if kind is None:
            self._look()
        self._see()

    def _look(self) -> None:
        self._ale.getScreenGrayscale(self._screen)
        self._screen_before[:] = 0

    def _wait(self) -> None:
        """Make a step of no-ops; a game that loses a life meanwhile begins again."""
        lives, skip = self._ale.lives(), self.config.frame_skip
        for frame in range(skip):
            self._ale.act(ale_py.Action.NOOP)
            if self._ale.game_over(with_truncation=False) or self._ale.lives() < lives:
                self._ale.reset_game()
                self._look()
                return
            if frame == skip - 2:
                self._ale.getScreenGrayscale(self._screen_before)
            elif frame == skip - 1:
                self._ale.getScreenGrayscale(self._screen)

    def _see(self) -> None:
        # In place, as in Dopamine and gymnasium: when a step ends early, part of the last pool is pooled again.
        if self.config.frame_skip > 1:
            np.maximum(self._screen, self._screen_before, out=self._screen)
        size = self.config.size
        self._stack[-1] = cv2.resize(self._screen, (size, size), interpolation=cv2.INTER_AREA)
