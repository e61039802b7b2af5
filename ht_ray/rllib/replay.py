"""The agents' replay as a replay buffer of RLlib, whose n-step transitions are right at the ends of episodes."""

from __future__ import annotations

import functools
import importlib
import warnings
from abc import ABCMeta
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import (
    ACTUAL_N_STEP,
    NUM_ENV_STEPS_ADDED,
    NUM_ENV_STEPS_ADDED_LIFETIME,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_ENV_STEPS_STORED,
)
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from ray.rllib.utils.replay_buffers import PrioritizedEpisodeReplayBuffer
from ray.rllib.utils.replay_buffers.base import ReplayBufferInterface
from ray.tune.result import TRAINING_ITERATION
from torch import Tensor

from ht_ray._checks import check_number, did_you_mean
from ht_ray.agents.replay import FrameReplay
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms.weights.rng import generator
from ht_ray.rllib.last_value import LAST

__all__ = ["COMPONENT_REPLAY", "NStepEpisodeReplayBuffer", "ReplayAlgorithm", "check_replay"]

#: The replay buffer's part of an algorithm's state.
COMPONENT_REPLAY = "replay_buffer"

_FORMAT = "ht_ray.NStepEpisodeReplayBuffer 1"


def check_n_step(where: str, n_step: Any) -> tuple[int, int]:
    """Return the least and the greatest n of ``n_step``; raise unless it is a number or a closed interval of them."""
    pair = tuple(n_step) if isinstance(n_step, (tuple, list)) else (n_step, n_step)
    whole = len(pair) == 2 and all(isinstance(n, int) and not isinstance(n, bool) for n in pair)
    if not whole or not 1 <= pair[0] <= pair[1]:
        raise SettingError(
            f"{where} = {n_step!r}: accepted is a whole number of at least 1, or an interval's two ends, as (1, 5)."
        )
    return pair


def environments(config: Any) -> int:
    """Return how many environments an algorithm of `config` steps."""
    return int(max(1, config.num_env_runners) * config.num_envs_per_env_runner)


def _named_class(kind: Any) -> Any:
    """Return the class that `kind` is or names by its path, as RLlib finds it; None if there is none."""
    if not isinstance(kind, str):
        return kind
    module, _, name = kind.rpartition(".")
    try:
        return getattr(importlib.import_module(module or "ray.rllib.utils.replay_buffers"), name, None)
    except ImportError:
        return None  # which RLlib says when it builds the algorithm


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, SettingWarning, stacklevel=4)


def check_replay(config: Any) -> bool:
    """Check the replay buffer of an algorithm's config, if it has one; return whether it is one of this module.

    Raises
    ------
    SettingError
        If n-step, discount or buffer are not accepted, or do not fit each other.
    """
    buffer = getattr(config, "replay_buffer_config", None)
    if not buffer:
        return False
    where = type(config).__name__
    _, greatest = check_n_step(f"{where}.n_step", config.n_step)
    cls = _named_class(buffer.get("type"))
    ours = isinstance(cls, type) and NStepEpisodeReplayBuffer in cls.__mro__
    if ours and config.is_multi_agent:
        raise SettingError(f"{where}.replay_buffer_config: {cls.__name__} is for one agent; multi_agent was set.")
    if ours:
        check_number(f"{where}.gamma", config.gamma, low=0, high=1)
        made = cls(**{name: value for name, value in buffer.items() if name != "type"})
        made.envs = made.envs or environments(config)
        made.check_size(greatest)
        if made.stack - 1 > config.episode_lookback_horizon:
            raise SettingError(
                f"{where}.episode_lookback_horizon = {config.episode_lookback_horizon!r}: accepted is "
                f"{made.stack - 1} or more with stack = {made.stack} in replay_buffer_config: what is further back "
                "RLlib takes for zeros when it acts."
            )
    elif greatest > 1 and getattr(cls, "__module__", "").startswith("ray."):
        _warn_once(
            f"{where}.n_step = {config.n_step!r} with RLlib's {cls.__name__}: its transitions of several steps are "
            "wrong at the ends of episodes: terminal states are bootstrapped from, or last steps never drawn. Set "
            "replay_buffer_config={'type': 'ht_ray.rllib.NStepEpisodeReplayBuffer'}, which is for one agent."
        )
    return ours


class _Named(ABCMeta):
    # RLlib looks for a part of the name in what `replay_buffer_config` has as its type, class or not.
    def __contains__(cls, name: str) -> bool:
        return name in cls.__name__


class NStepEpisodeReplayBuffer(ReplayBufferInterface, metaclass=_Named):
    """Replay buffer for DQN and SAC of RLlib, for one agent; name it in ``replay_buffer_config`` as the ``type``.

    A transition has the discounted rewards of n steps, and fewer where its episode ends before: then the value of the
    last observation counts ``gamma ** steps``, or nothing if the episode terminated. RLlib's own buffers, asked for
    more than one step, either have the learner bootstrap from terminal states or never return an episode's last steps.
    ``n_step`` is that of ``config.training``, a number or a closed interval from which each transition draws its own.

    Transitions are in `ht_ray.agents.replay.FrameReplay`. Those of an episode that runs are drawn once their n steps
    are known. What is left unset is as in RLlib's DQN.

    Parameters
    ----------
    capacity
        Observations held: one for each step and one for each start of an episode. Default 50 000.
    alpha
        Draw in proportion to ``priority ** alpha``, in [0, 1]; 0 draws uniformly. Default 0.6.
    beta
        Importance weights are ``probability ** -beta``, divided by the batch's largest. Default 0.4.
    stack
        Observations in a stack, joined along their last axis, zeros before the first: what RLlib's
        ``FrameStackingEnvToModule(num_frames=stack)`` makes of single frames, which are held once. Default 1:
        observations are held as they come, already stacked ones too.
    envs
        How many episodes run at once; the capacity is divided among them. None (default): as many as the first pieces
        of episodes come from; with an algorithm that is a `ReplayAlgorithm`, as many as its config has environments.
    seed
        Of the draws. None (default): 0; with a `ReplayAlgorithm`, the seed of its config.

    Raises
    ------
    SettingError
        If a setting is not known or not accepted; when steps are added or drawn, if they are not those of one agent
        with observations that are arrays, or sequences are asked for (recurrent modules).

    Examples
    --------
    >>> from ray.rllib.algorithms.dqn.dqn import DQNConfig
    >>> config = DQNConfig().training(
    ...     n_step=3, replay_buffer_config={"type": "ht_ray.rllib.NStepEpisodeReplayBuffer", "capacity": 100_000}
    ... )
    """

    def __init__(
        self,
        capacity: int = 50_000,
        *,
        alpha: float = 0.6,
        beta: float = 0.4,
        stack: int = 1,
        envs: int | None = None,
        seed: int | None = None,
        metrics_num_episodes_for_smoothing: int = 100,
        **unknown: Any,
    ) -> None:
        where = type(self).__name__
        for name in unknown:
            known = ("capacity", "alpha", "beta", "stack", "envs", "seed")
            raise SettingError(f"replay_buffer_config: {where} has no setting {name!r}.{did_you_mean(name, known)}")
        # What is None is known later, to the algorithm; `FrameReplay` checks it again.
        for name, value in {"capacity": capacity, "stack": stack, "envs": 1 if envs is None else envs}.items():
            check_number(f"{where}: {name}", value, low=1, integer=True)
        for name, share in {"alpha": alpha, "beta": beta}.items():
            check_number(f"{where}: {name}", share, low=0, high=1)
        check_number(f"{where}: seed", seed or 0, integer=True)
        self.capacity, self.alpha, self.beta, self.stack = capacity, alpha, beta, stack
        self.envs, self.seed = envs, seed
        self.check_size(1)
        self.metrics = MetricsLogger(root=False)
        self._replay: FrameReplay | None = None
        #: Actions that are no single number lie here, by a number that stands for them in the replay.
        self._actions: NDArray[Any] | None = None
        self._steps: list[int] = []
        #: Episodes that run, by id: the replay's environment, the next step, the call that added to it last; the one
        #: that has waited longest first. The environments without one, likewise.
        self._running: dict[str, tuple[int, int, int]] = {}
        self._idle: deque[int] = deque()
        self._calls = 0
        self._drawn: Tensor | None = None

    def check_size(self, n_step: int) -> None:
        """Raise if an environment's share of the capacity is too small for one transition of `n_step` steps."""
        needed = self.stack + n_step
        if self.capacity // (self.envs or 1) < needed:
            raise SettingError(
                f"{type(self).__name__}: capacity = {self.capacity}: each of {self.envs or 1} environment(s) needs at "
                f"least stack + n_step = {needed} to hold one transition."
            )

    def __len__(self) -> int:
        """Steps held."""
        return 0 if self._replay is None else len(self._replay)

    def add(self, episodes: SingleAgentEpisode | Sequence[SingleAgentEpisode], **kwargs: Any) -> None:
        """Add episodes, or pieces of them as they come."""
        episodes = list(episodes) if isinstance(episodes, Iterable) else [episodes]
        for episode in episodes:
            if not isinstance(episode, SingleAgentEpisode):
                raise SettingError(f"{type(self).__name__}: accepted are episodes of one agent, not {type(episode)}.")
        episodes = [episode for episode in episodes if len(episode)]
        self._calls += 1
        for episode in episodes:
            if self._replay is None:
                self._make(episodes)
            self._add(episode)
        added = sum(map(len, episodes))
        self.metrics.log_value(NUM_ENV_STEPS_ADDED, added, reduce="sum")
        self.metrics.log_value(NUM_ENV_STEPS_ADDED_LIFETIME, added, reduce="lifetime_sum")
        self.metrics.log_value(NUM_ENV_STEPS_STORED, len(self), reduce=LAST)

    def _make(self, episodes: list[SingleAgentEpisode]) -> None:
        if self.envs is None:
            # Environments make the same number of steps in a call, but for those of starts: at least the longest piece.
            self.envs = -(-sum(map(len, episodes)) // max(map(len, episodes)))
            self.check_size(1)
        frame = np.asarray(episodes[0].get_observations(0))
        if frame.dtype.kind not in "biuf":
            raise SettingError(
                f"{type(self).__name__}: accepted are observations that are one array of numbers each, which RLlib's "
                "FlattenObservations makes of others."
            )
        self._prepare(self.envs, frame.shape, frame.dtype)
        action = np.asarray(episodes[0].get_actions(0))
        if action.ndim or action.dtype.kind not in "iu":
            self._actions = np.zeros((self.capacity, *action.shape), action.dtype)

    def _prepare(self, envs: int, shape: tuple[int, ...], dtype: Any) -> None:
        self._replay = FrameReplay(
            self.capacity,
            frame_shape=shape,
            frame_dtype=dtype,
            stack=self.stack,
            n_step=1,
            prioritized=self.alpha > 0,
            priority_exponent=self.alpha,
            importance=self.beta,
            envs=envs,
            seed=self.seed or 0,
        )
        self._steps = [0] * envs
        self._idle = deque(range(envs))

    def _add(self, episode: SingleAgentEpisode) -> None:
        replay = self._replay
        assert replay is not None
        observations = episode.get_observations(slice(0, len(episode) + 1))
        actions, rewards = (get(slice(0, len(episode))) for get in (episode.get_actions, episode.get_rewards))
        env, expected = self._environment(episode)
        if expected != episode.t_started:
            replay.start(self._frame(observations[0]), env)
        for step, (action, reward) in enumerate(zip(actions, rewards, strict=True)):
            last = step == len(episode) - 1
            replay.add(
                self._action_number(env, action),
                reward,
                self._frame(observations[step + 1]),
                terminated=last and episode.is_terminated,
                truncated=last and episode.is_truncated,
                env=env,
            )
        if episode.is_done:
            self._idle.append(env)
        else:
            self._running[episode.id_] = (env, episode.t_started + len(episode), self._calls)

    def _environment(self, episode: SingleAgentEpisode) -> tuple[int, int | None]:
        # Where it is to go on, and the step that is to come there.
        if episode.id_ in self._running:
            env, expected, _ = self._running.pop(episode.id_)
            return env, expected
        if self._idle:
            return self._idle.popleft(), None
        # An episode that is never heard of again (its env runner was lost, or this one restored) makes room.
        longest = next(iter(self._running))
        env, _, call = self._running.pop(longest)
        if call >= self._calls - 1:
            warnings.warn(
                f"{type(self).__name__}: more than {self.envs} episodes run at once, so that each is cut where another "
                "goes on, as if truncated: set 'envs' in replay_buffer_config to the number of environments "
                "(num_env_runners * num_envs_per_env_runner). A restored buffer keeps the number it was saved with.",
                SettingWarning,
                stacklevel=4,
            )
        return env, None

    def _frame(self, observation: Any) -> NDArray[Any]:
        assert self._replay is not None
        return np.asarray(observation).astype(self._replay.frame_dtype, casting="same_kind", copy=False)

    def _action_number(self, env: int, action: Any) -> int:
        if self._actions is None:
            return int(action)
        # An environment's part holds no more steps than it has places.
        size = self.capacity // len(self._steps)
        number = env * size + self._steps[env] % size
        self._steps[env] += 1
        self._actions[number] = action
        return number

    def sample(
        self,
        num_items: int,
        *,
        n_step: int | Sequence[int] = 1,
        gamma: float = 0.99,
        batch_length_T: int = 0,
        **kwargs: Any,
    ) -> list[SingleAgentEpisode]:
        """Draw transitions, with replacement.

        Parameters
        ----------
        num_items
            How many.
        n_step
            Steps whose rewards are summed; of an interval, its ends included, each transition draws one.
        gamma
            The discount of one step.
        batch_length_T
            Must be 0: sequences are not drawn.

        Returns
        -------
        list of SingleAgentEpisode
            Each of one step, with ``weights`` and the number of steps that were summed, ``n_step``, for the learner.
            Where an episode was cut or truncated is not marked; nothing is learned from it.
        """
        if batch_length_T:
            raise SettingError(f"{type(self).__name__}: sequences for recurrent modules are not drawn.")
        if self._replay is None:
            raise ValueError(f"{type(self).__name__}.sample: nothing was added yet")
        least, greatest = check_n_step(f"{type(self).__name__}.sample: n_step", n_step)
        self.check_size(greatest)
        each: int | Tensor = greatest
        if least < greatest:
            draws = generator(self._replay.seed, "n_step", self._replay.samples)
            each = torch.randint(least, greatest + 1, (num_items,), generator=draws)
        batch = self._replay.sample(num_items, n_step=each, discount=gamma)
        self._drawn = batch.indices if self.alpha > 0 else None
        assert batch.steps is not None
        self.metrics.log_value(NUM_ENV_STEPS_ADDED, 0, reduce="sum")  # of nothing, RLlib's sum is NaN
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED, num_items, reduce="sum")
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, num_items, reduce="lifetime_sum")
        self.metrics.log_value(ACTUAL_N_STEP, float(batch.steps.double().mean()), reduce=LAST)
        numbers = batch.actions.numpy()
        columns = zip(
            self._joined(batch.observations),
            self._joined(batch.next_observations),
            numbers if self._actions is None else self._actions[numbers],
            batch.returns.numpy(),
            (batch.discounts == 0).tolist(),
            batch.weights.numpy(),
            batch.steps.numpy(),
            strict=True,
        )
        return [
            SingleAgentEpisode(
                id_=str(number),
                observations=[observation, successor],
                actions=[action],
                rewards=[reward],
                terminated=terminated,
                extra_model_outputs={"weights": [weight], "n_step": [steps]},
                len_lookback_buffer=0,
            )
            for number, (observation, successor, action, reward, terminated, weight, steps) in enumerate(columns)
        ]

    def _joined(self, stacks: Tensor) -> NDArray[Any]:
        if self.stack == 1:
            return stacks.squeeze(1).numpy()
        return stacks.movedim(1, -2).flatten(-2).numpy()

    def update_priorities(self, priorities: NDArray[Any], module_id: str | None = None) -> None:
        """Set the priorities of what was drawn last, one for each; nothing where draws are uniform."""
        if self._drawn is None:
            return
        assert self._replay is not None
        if len(priorities) != len(self._drawn):
            raise ValueError(
                f"{type(self).__name__}.update_priorities: {len(priorities)} priorities for {len(self._drawn)} "
                "transitions"
            )
        self._replay.update_priorities(self._drawn, torch.as_tensor(priorities))

    def get_metrics(self) -> Any:
        """Return what was logged since the last call."""
        return self.metrics.reduce()

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("capacity", "alpha", "beta", "stack", "seed")}

    def get_state(self) -> dict[str, Any]:
        """Return all that is held, compressed, as tensors and plain data."""
        state: dict[str, Any] = {"format": _FORMAT, "settings": self._settings(), "replay": None}
        if self._replay is None:
            return state
        return state | {
            "replay": self._replay.state_dict(),
            "envs": self.envs,
            "running": [(episode, *place) for episode, place in self._running.items()],
            "idle": list(self._idle),
            "calls": self._calls,
            "steps": list(self._steps),
            "actions": None if self._actions is None else torch.from_numpy(self._actions.copy()),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on as the buffer whose `get_state` this is.

        Raises
        ------
        ValueError
            If it is another's, or that of one with other settings.
        """
        where = type(self).__name__
        if state.get("format") != _FORMAT:
            raise ValueError(f"{where}: this is no state of such a buffer; was the checkpoint made with another one?")
        for name, value in self._settings().items():
            if state["settings"][name] != value:
                raise ValueError(f"{where}: {name} = {state['settings'][name]!r} in the saved buffer, {value!r} here.")
        self._replay = self._drawn = None
        if state["replay"] is None:
            return
        self.envs = state["envs"]
        settings = state["replay"]["settings"]
        self._prepare(state["envs"], tuple(settings["frame_shape"]), settings["frame_dtype"])
        assert self._replay is not None
        self._replay.load_state_dict(state["replay"])
        self._running = {episode: (env, step, call) for episode, env, step, call in state["running"]}
        self._idle, self._calls, self._steps = deque(state["idle"]), state["calls"], list(state["steps"])
        self._actions = None if state["actions"] is None else state["actions"].numpy().copy()


# RLlib hands TD errors to buffers of this kind only.
PrioritizedEpisodeReplayBuffer.register(NStepEpisodeReplayBuffer)


class ReplayAlgorithm(Algorithm):
    """Algorithm mixin: looks after the replay buffer.

    Checkpoints hold it if ``config.store_buffer_in_checkpoints`` says so, a setting that RLlib has and, on its new API
    stack, passes over. A `NStepEpisodeReplayBuffer` gets its number of environments and its seed from the config, where
    it was given none. The algorithms of the config mixins have this mixin already; put it before another's class:
    ``class MyDQN(ReplayAlgorithm, DQN)``.
    """

    def setup(self, config: Any) -> None:
        """Build the algorithm."""
        super().setup(config)
        buffer = self.local_replay_buffer
        if isinstance(buffer, NStepEpisodeReplayBuffer):
            if buffer.envs is None:
                buffer.envs = environments(self.config)
            if buffer.seed is None:
                buffer.seed = self.config.seed

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> Any:
        """Return the algorithm's state, with the buffer's under `COMPONENT_REPLAY`."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        wanted = self.config.get("store_buffer_in_checkpoints") and self.local_replay_buffer is not None
        if wanted and self._check_component(COMPONENT_REPLAY, components, not_components):
            state[COMPONENT_REPLAY] = self.local_replay_buffer.get_state()
        return state

    def set_state(self, state: Any) -> None:
        """Continue from `state`."""
        super().set_state(state)
        if COMPONENT_REPLAY in state:
            self.local_replay_buffer.set_state(state[COMPONENT_REPLAY])
        elif self.config.get("store_buffer_in_checkpoints") and TRAINING_ITERATION in state:
            warnings.warn(
                f"{type(self).__name__}: store_buffer_in_checkpoints = True, but the checkpoint holds no replay "
                "buffer: training goes on with an empty one.",
                SettingWarning,
                stacklevel=2,
            )
