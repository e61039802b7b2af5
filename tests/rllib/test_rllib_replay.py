"""The replay buffer for RLlib: transitions at the ends of episodes, pieces of episodes, state, and whole algorithms."""

from __future__ import annotations

import pickle
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.dqn.dqn import DQN, DQNConfig
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.algorithms.sac.sac import SACConfig
from ray.rllib.connectors.env_to_module.frame_stacking import FrameStackingEnvToModule
from ray.rllib.core.columns import Columns
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.replay_buffers import EpisodeReplayBuffer, PrioritizedEpisodeReplayBuffer
from rllib_agents import MODULE, SMALL, built, configured, equal

from ht_ray.rllib import (
    HTDQNConfig,
    HTSACConfig,
    NStepEpisodeReplayBuffer,
    ReplayAlgorithm,
    SettingError,
    SettingWarning,
    with_hare_tortoise,
)
from ht_ray.rllib.replay import _warn_once

PATH = "ht_ray.rllib.NStepEpisodeReplayBuffer"
GAMMA = 0.5


def observed(number: int, step: int) -> Any:
    return np.array([number, step], np.float32)


def episode(number: int = 0, *, steps: int = 6, end: str | None = "terminated", observe: Any = observed) -> Any:
    """Return an episode whose observations tell which it is and the step; step t has action t - 1 and reward t."""
    made = SingleAgentEpisode(id_=f"episode {number}")
    made.add_env_reset(observe(number, 0))
    for step in range(1, steps + 1):
        ends = {end: step == steps} if end else {}
        made.add_env_step(observe(number, step), step - 1, float(step), **ends)
    return made


def pieces(whole: Any, *sizes: int) -> list[Any]:
    """Return the episode in pieces, made as an env runner makes them."""
    made, piece, at = [], SingleAgentEpisode(id_=whole.id_), 0
    piece.add_env_reset(whole.get_observations(0))
    for size in sizes:
        for step in range(at, at + size):
            last = step == len(whole) - 1
            piece.add_env_step(
                whole.get_observations(step + 1),
                whole.get_actions(step),
                whole.get_rewards(step),
                terminated=last and whole.is_terminated,
                truncated=last and whole.is_truncated,
            )
        at += size
        following = None if piece.is_done else piece.cut(len_lookback_buffer=1)
        made.append(piece.to_numpy())
        piece = following
    return made


def drawn(buffer: Any, n_step: Any = 1, *, count: int = 2000) -> Counter[tuple[Any, ...]]:
    """Return what DQN's training step is given, in plain values, with how often."""
    sample = buffer.sample(
        num_items=count,
        n_step=n_step,
        batch_length_T=0,
        lookback=0,
        min_batch_length_T=0,
        gamma=GAMMA,
        beta=0.4,
        sample_episodes=True,
    )
    return Counter(
        (
            *(tuple(one.get_observations(at).tolist()) for at in (0, -1)),
            int(one.get_actions(0)),
            float(one.get_rewards(0)),
            one.is_terminated,
            int(one.get_extra_model_outputs("n_step", 0)),
        )
        for one in sample
    )


def expected(number: int, n_step: int, *, steps: int = 6, end: str | None = "terminated") -> set[tuple[Any, ...]]:
    """Return all transitions of an episode, worked out one by one."""
    last = steps if end else steps - n_step + 1
    return {
        (
            (number, start),
            (number, start + m),
            start,
            sum(GAMMA**k * (start + k + 1) for k in range(m)),
            end == "terminated" and start + m == steps,
            m,
        )
        for start in range(last)
        for m in [min(n_step, steps - start)]
    }


@pytest.mark.parametrize("alpha", [0, 0.6])
@pytest.mark.parametrize("end", ["terminated", "truncated", None])
@pytest.mark.parametrize("n_step", [1, 3])
def test_transitions_of_six_steps(n_step: int, end: str | None, alpha: float) -> None:
    buffer = NStepEpisodeReplayBuffer(50, alpha=alpha)
    buffer.add([episode(end=end)])
    counts = drawn(buffer, n_step)
    assert set(counts) == expected(0, n_step, end=end)
    assert min(counts.values()) > 2000 / len(counts) / 2
    assert len(buffer) == 6


def test_what_these_are_written_out() -> None:
    buffer = NStepEpisodeReplayBuffer(50)
    buffer.add([episode()])
    assert set(drawn(buffer, 3)) == {
        ((0, 0), (0, 3), 0, 1 + 2 / 2 + 3 / 4, False, 3),
        ((0, 1), (0, 4), 1, 2 + 3 / 2 + 4 / 4, False, 3),
        ((0, 2), (0, 5), 2, 3 + 4 / 2 + 5 / 4, False, 3),
        ((0, 3), (0, 6), 3, 4 + 5 / 2 + 6 / 4, True, 3),
        ((0, 4), (0, 6), 4, 5 + 6 / 2, True, 2),
        ((0, 5), (0, 6), 5, 6, True, 1),
    }


@pytest.mark.parametrize("kind", [EpisodeReplayBuffer, PrioritizedEpisodeReplayBuffer])
def test_what_is_said_of_rllibs_own_is_so(kind: Any) -> None:
    # If this fails, RLlib was mended: then the warning and the docs go.
    buffer = kind(50)
    buffer.add([episode()])
    starts = {start[1]: (terminated, n) for start, _, _, _, terminated, n in drawn(buffer, 3)}
    if kind is EpisodeReplayBuffer:
        assert starts[4] == starts[5] == (False, 3)
    else:
        assert sorted(starts) == [0, 1, 2, 3]
    assert max(n for *_, n in drawn(buffer, (1, 4))) == 3


@pytest.mark.parametrize("alpha", [0, 0.6])
def test_an_interval_is_closed_and_each_transition_draws_its_own(alpha: float) -> None:
    buffer = NStepEpisodeReplayBuffer(50, alpha=alpha)
    buffer.add([episode()])
    counts = drawn(buffer, (1, 4), count=4000)
    assert set(counts) == set().union(*(expected(0, n) for n in (1, 2, 3, 4)))
    of_first = [count for (start, *_), count in counts.items() if start == (0, 0)]
    assert len(of_first) == 4 and min(of_first) > 100
    assert set(drawn(buffer, [2, 2])) == expected(0, 2)
    # While the episode runs, what may not have its four steps yet is not drawn.
    buffer = NStepEpisodeReplayBuffer(50, alpha=alpha)
    buffer.add([episode(end=None)])
    assert {start for start, *_ in drawn(buffer, (1, 4))} == {(0, 0), (0, 1), (0, 2)}


@pytest.mark.parametrize("alpha", [0, 0.6])
def test_pieces_of_many_environments(alpha: float) -> None:
    buffer = NStepEpisodeReplayBuffer(300, alpha=alpha)
    first = [pieces(episode(number, steps=7), 2, 2, 3) for number in range(3)]
    short = episode(3, steps=1, end="truncated")
    long = pieces(episode(4, steps=9, end="truncated"), 1, 2, 3, 3)
    calls = [
        [short.to_numpy(), *(piece[0] for piece in first), long[0]],
        [*(piece[1] for piece in first), long[1]],
        [*(piece[2] for piece in reversed(first)), long[2]],
        [episode(5, steps=4, end="truncated"), long[3], episode(6, steps=5, end=None)],
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", SettingWarning)
        for call in calls:
            buffer.add(call)
    assert buffer.envs == 4  # five pieces, of which two are one environment's
    whole = [expected(number, 3, steps=7) for number in range(3)]
    whole += [expected(number, 3, steps=n, end="truncated") for number, n in ((3, 1), (4, 9), (5, 4))]
    assert set(drawn(buffer, 3, count=4000)) == set().union(*whole, expected(6, 3, steps=5, end=None))


def test_old_steps_make_room_whole_episodes_first_to_last() -> None:
    buffer = NStepEpisodeReplayBuffer(20, alpha=0, envs=1)
    for number in range(10):
        buffer.add([episode(number)])
        starts = {start for start, *_ in drawn(buffer, 3, count=500)}
        assert (number, 0) in starts and len(starts) <= 20
    assert starts == {*((7, 1 + step) for step in range(5)), *((n, step) for n in (8, 9) for step in range(6))}


def test_too_few_environments_are_warned_of_and_nothing_is_mixed() -> None:
    buffer = NStepEpisodeReplayBuffer(100, envs=1)
    one, two = (pieces(episode(number), 2, 2, 2) for number in range(2))
    with pytest.warns(SettingWarning, match="more than 1 episodes run at once.*set 'envs'"):
        for pair in zip(one, two, strict=True):
            buffer.add(list(pair))
    for start, end, action, reward, terminated, m in drawn(buffer, 3):
        assert start[0] == end[0] and end[1] - start[1] == m == min(3, 2 - start[1] % 2)
        assert action == start[1]
        assert reward == sum(GAMMA**k * (start[1] + k + 1) for k in range(m))
        assert terminated == (end[1] == 6)


def test_lost_pieces_and_lost_environments() -> None:
    buffer = NStepEpisodeReplayBuffer(100, envs=1)
    first, _, third = pieces(episode(0), 2, 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SettingWarning)
        buffer.add([first])
        buffer.add([third])  # the second was lost on its way: what is left of the first ends as if truncated
        buffer.add(pieces(episode(1), 2, 4)[:1])
        buffer.add([])
        buffer.add([])
        buffer.add([episode(2)])  # of an env runner that took the place of a lost one
    seen = drawn(buffer, 3)
    assert {(start, end) for start, end, *_ in seen if start[0] == 0} == {
        ((0, 0), (0, 2)),
        ((0, 1), (0, 2)),
        ((0, 4), (0, 6)),
        ((0, 5), (0, 6)),
    }
    assert {(start, end) for start, end, *_ in seen if start[0] == 1} == {((1, 0), (1, 2)), ((1, 1), (1, 2))}
    assert {one for one in seen if one[0][0] == 2} == expected(2, 3)


@pytest.mark.parametrize(
    "observe",
    [
        lambda number, step: np.array([number, step, step], np.float64),
        lambda number, step: np.full((5, 4), step, np.uint8),
        lambda number, step: np.full((5, 4, 1), step, np.uint8),
        lambda number, step: np.stack([np.full((5, 4), max(step - back, 0), np.uint8) for back in range(4)], -1),
        lambda number, step: step,
        lambda number, step: np.int64(step),
        lambda number, step: np.array([step % 2 == 0, True]),
    ],
)
def test_observations_come_out_as_they_went_in(observe: Any) -> None:
    buffer = NStepEpisodeReplayBuffer(50)
    buffer.add([episode(observe=observe).to_numpy()])
    for one in buffer.sample(num_items=50, n_step=2):
        start = int(one.get_actions(0))
        for at, step in ((0, start), (-1, start + int(one.get_extra_model_outputs("n_step", 0)))):
            seen, own = one.get_observations(at), np.asarray(observe(0, step))
            assert seen.dtype == own.dtype and np.array_equal(seen, own)


def test_single_frames_are_stacked_as_rllibs_connector_does() -> None:
    def frame(number: int, step: int) -> Any:
        return np.full((5, 4, 1), 10 * number + step + 1, np.uint8)

    stacks = {}
    connector = FrameStackingEnvToModule(num_frames=3)
    for step in range(7):
        running = episode(steps=step, end=None, observe=frame)
        running.observation_space = gymnasium.spaces.Box(0, 255, (5, 4, 1), np.uint8)
        batch = connector(rl_module=None, batch={}, episodes=[running], explore=True, shared_data={})
        stacks[step] = batch[Columns.OBS][(running.id_,)][0]
    assert stacks[0][0, 0].tolist() == [0, 0, 1] and stacks[6][0, 0].tolist() == [5, 6, 7]
    buffer = NStepEpisodeReplayBuffer(50, stack=3)
    buffer.add(pieces(episode(observe=frame), 1, 1, 4))
    starts = set()
    for one in buffer.sample(num_items=100, n_step=3):
        start = int(one.get_actions(0))
        starts.add(start)
        assert np.array_equal(one.get_observations(0), stacks[start])
        assert np.array_equal(one.get_observations(-1), stacks[min(start + 3, 6)])
    assert starts == set(range(6))


def test_actions_that_are_vectors() -> None:
    buffer = NStepEpisodeReplayBuffer(24, envs=2)
    for number in range(10):
        made = SingleAgentEpisode(id_=str(number))
        made.add_env_reset(observed(number, 0))
        for step in range(1, 7):
            action = np.array([number, step - 1], np.float32)
            made.add_env_step(observed(number, step), action, 0.0, truncated=step == 6)
        buffer.add([made.to_numpy()])
        for one in buffer.sample(num_items=60, n_step=2):
            assert one.get_actions(0).dtype == np.float32
            assert np.array_equal(one.get_actions(0), one.get_observations(0))


def test_priorities_are_those_of_the_transitions_just_drawn() -> None:
    buffer = NStepEpisodeReplayBuffer(50, alpha=1.0, beta=1.0)
    buffer.add([episode()])
    sample = buffer.sample(num_items=32, n_step=1, gamma=GAMMA)
    assert {float(one.get_extra_model_outputs("weights", 0)) for one in sample} == {1.0}
    buffer.update_priorities(np.array([9.0 if one.get_actions(0) == 2 else 1.0 for one in sample], np.float32), MODULE)
    counts = Counter()
    for one in buffer.sample(num_items=1400, n_step=1, gamma=GAMMA):
        counts[int(one.get_actions(0))] += 1
        weight = 1 / 9 if one.get_actions(0) == 2 else 1.0
        assert float(one.get_extra_model_outputs("weights", 0)) == pytest.approx(weight)
    assert abs(counts[2] - 900) < 20 and all(abs(counts[n] - 100) < 20 for n in (0, 1, 3, 4, 5))
    with pytest.raises(ValueError, match="3 priorities for 1400 transitions"):
        buffer.update_priorities(np.ones(3))
    uniform = NStepEpisodeReplayBuffer(50, alpha=0)
    uniform.add([episode()])
    before = drawn(uniform)
    uniform.update_priorities(np.ones(3))  # as RLlib does with any such buffer
    assert set(drawn(uniform)) == set(before)


@pytest.mark.parametrize("alpha", [0, 0.6])
def test_a_restored_buffer_goes_on_as_if_nothing_had_been(alpha: float) -> None:
    def first(buffer: Any) -> None:
        buffer.add([pieces(episode(0), 2, 4)[0], episode(1), pieces(episode(2), 3, 3)[0]])
        buffer.sample(num_items=8, n_step=(1, 3))
        buffer.update_priorities(np.arange(8.0))

    def then(buffer: Any) -> list[Any]:
        buffer.add([pieces(episode(0), 2, 4)[1], pieces(episode(2), 3, 3)[1], episode(3)])
        seen = []
        for _ in range(3):
            sample = buffer.sample(num_items=8, n_step=(1, 3))
            buffer.update_priorities(np.arange(8.0) + len(seen))
            seen.append([(one.get_state()["observations"]["data"], one.get_rewards(0)) for one in sample])
        return seen

    whole = NStepEpisodeReplayBuffer(100, alpha=alpha, seed=3)
    first(whole)
    state = pickle.loads(pickle.dumps(whole.get_state()))
    restored = NStepEpisodeReplayBuffer(100, alpha=alpha, seed=3)
    restored.add([episode(7, steps=30)])  # what it was before must not matter
    restored.set_state(state)
    assert str(then(whole)) == str(then(restored))
    assert equal(restored.get_state()["replay"], whole.get_state()["replay"])
    with pytest.raises(ValueError, match="capacity = 100 in the saved buffer, 50 here"):
        NStepEpisodeReplayBuffer(50, alpha=alpha, seed=3).set_state(state)
    with pytest.raises(ValueError, match="no state of such a buffer"):
        restored.set_state(EpisodeReplayBuffer(50).get_state())
    empty = NStepEpisodeReplayBuffer(100, alpha=alpha, seed=3)
    restored.set_state(empty.get_state())
    assert len(restored) == 0


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(SettingError, match=r"has no setting 'alpa'\. Did you mean 'alpha'"):
        NStepEpisodeReplayBuffer(alpa=0.5)
    for settings in ({"alpha": 2.0}, {"beta": -1.0}, {"stack": 0}, {"envs": 0}, {"capacity": 1.5}, {"seed": 0.5}):
        name, value = next(iter(settings.items()))
        with pytest.raises(SettingError, match=f"{name} = {value}"):
            NStepEpisodeReplayBuffer(**settings)
    buffer = NStepEpisodeReplayBuffer(10)
    with pytest.raises(ValueError, match="nothing was added"):
        buffer.sample(num_items=1)
    with pytest.raises(SettingError, match="episodes of one agent"):
        buffer.add([MultiAgentEpisode()])
    with pytest.raises(SettingError, match="one array of numbers"):
        buffer.add([episode(observe=lambda number, step: {"a": step})])
    buffer.add([episode()])
    with pytest.raises(SettingError, match="sequences"):
        buffer.sample(num_items=1, batch_length_T=20)
    with pytest.raises(SettingError, match=r"needs at least stack \+ n_step = 11"):
        buffer.sample(num_items=1, n_step=10)


@pytest.mark.parametrize("named", [PATH, NStepEpisodeReplayBuffer])
@pytest.mark.parametrize(
    "config", [HTDQNConfig, HTSACConfig, with_hare_tortoise(DQNConfig), with_hare_tortoise(SACConfig), DQNConfig]
)
def test_configs_take_it(config: Any, named: Any) -> None:
    made = config().training(n_step=(1, 3), replay_buffer_config={"type": named, "alpha": 0.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error", SettingWarning)
        made.validate()
    assert made.replay_buffer_config == {"type": named, "alpha": 0.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_step": 0}, "n_step = 0: accepted is a whole number of at least 1"),
        ({"n_step": (3, 1)}, r"n_step = \(3, 1\)"),
        ({"n_step": (1, 2, 3)}, "an interval's two ends"),
        ({"n_step": 2.5}, "n_step = 2.5"),
        ({"replay_buffer_config": {"type": PATH, "alpa": 0.5}}, "Did you mean 'alpha'"),
        ({"replay_buffer_config": {"type": PATH, "alpha": 1.5}}, "alpha = 1.5"),
        ({"replay_buffer_config": {"type": PATH, "capacity": 10}, "n_step": 10}, "capacity = 10"),
        ({"replay_buffer_config": {"type": PATH}, "gamma": 1.5}, "gamma = 1.5"),
        ({"replay_buffer_config": {"type": PATH, "stack": 4}}, "episode_lookback_horizon = 1: accepted is 3"),
    ],
)
def test_its_settings_are_checked_by_validate(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        HTDQNConfig().training(**settings).validate()


def test_each_environment_needs_its_share() -> None:
    config = HTDQNConfig().training(n_step=5, replay_buffer_config={"type": PATH, "capacity": 40})
    config.env_runners(num_env_runners=2, num_envs_per_env_runner=3).validate()
    with pytest.raises(SettingError, match=r"capacity = 40: each of 8 environment\(s\) needs at least .* = 6"):
        config.env_runners(num_envs_per_env_runner=4).validate()


def test_it_is_for_one_agent() -> None:
    config = HTDQNConfig().training(replay_buffer_config={"type": PATH})
    config.multi_agent(policies={"a"}, policy_mapping_fn=lambda agent, episode, **kwargs: "a")
    with pytest.raises(SettingError, match="is for one agent"):
        config.validate()


@pytest.mark.parametrize("config", [HTDQNConfig, HTSACConfig, with_hare_tortoise(DQNConfig)])
@pytest.mark.parametrize("kind", [None, "EpisodeReplayBuffer", EpisodeReplayBuffer])
def test_stock_buffers_are_warned_of_once(config: Any, kind: Any) -> None:
    if kind is EpisodeReplayBuffer and config is HTSACConfig:
        pytest.skip("RLlib's SAC takes no class")
    buffer = {} if kind is None else {"replay_buffer_config": {"type": kind}}
    _warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        config().training(**buffer).validate()
        assert [one for one in seen if issubclass(one.category, SettingWarning)] == []
        for _ in range(3):
            config().training(n_step=3, **buffer).validate()
    told = [str(one.message) for one in seen if issubclass(one.category, SettingWarning)]
    assert len(told) == 1
    assert "n_step = 3 with RLlib's" in told[0] and PATH in told[0]


class Seen(DQNTorchLearner):
    """Keeps the last batch."""

    def compute_loss_for_module(self, *, batch: Any, **kwargs: Any) -> Any:
        self.seen = {name: batch[name].clone() for name in ("obs", "new_obs", "rewards", "n_step", "terminateds")}
        return super().compute_loss_for_module(batch=batch, **kwargs)


def test_the_learner_is_given_them_in_the_order_of_the_priorities() -> None:
    buffer = NStepEpisodeReplayBuffer(200, seed=1)
    observe = lambda number, step: np.array([number, step, 0, 0], np.float32)  # noqa: E731
    buffer.add([episode(number, steps=3, observe=observe) for number in range(5)])
    learner = built(configured(HTDQNConfig(), learner_class=Seen))
    sample = buffer.sample(num_items=64, n_step=3, gamma=GAMMA)
    result = learner.update(episodes=sample, timesteps={"num_env_steps_sampled_lifetime": 1})
    columns = (learner.seen["obs"], learner.seen["new_obs"])
    for row, one in enumerate(sample):
        assert all(torch.equal(column[row], torch.as_tensor(one.get_observations(at)))
                   for at, column in zip((0, -1), columns, strict=True))  # fmt: skip
        assert learner.seen["rewards"][row] == one.get_rewards(0)
        assert learner.seen["n_step"][row] == one.get_extra_model_outputs("n_step", 0)
        assert learner.seen["terminateds"][row] == one.is_terminated
    assert {int(n) for n in learner.seen["n_step"]} == {1, 2, 3}
    buffer.update_priorities(np.concatenate(result[MODULE]["td_error"].peek()), MODULE)


def small(config: Any, env: Any, **training: Any) -> Any:
    return (
        config.environment(env)
        .env_runners(num_env_runners=0)
        .learners(num_learners=0)
        .rl_module(model_config=SMALL)
        .reporting(min_sample_timesteps_per_iteration=60, min_time_s_per_iteration=0)
        .debugging(seed=5, log_level="ERROR")
        .training(num_steps_sampled_before_learning_starts=20, train_batch_size_per_learner=16)
        .training(replay_buffer_config={"type": PATH, "capacity": 1000}, **training)
    )


class Frames(gymnasium.Env[Any, Any]):
    """A square that walks to the right; single frames."""

    observation_space = gymnasium.spaces.Box(0, 1, (12, 12, 1), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, config: Any = None) -> None:
        self.at = 0

    def reset(self, **kwargs: Any) -> Any:
        self.at = 0
        return self._frame(), {}

    def step(self, action: Any) -> Any:
        self.at += 1
        return self._frame(), float(action), self.at == 9, False, {}

    def _frame(self) -> Any:
        frame = np.zeros((12, 12, 1), np.float32)
        frame[4:8, self.at : self.at + 3] = 1
        return frame


@pytest.mark.usefixtures("cluster")
@pytest.mark.filterwarnings("ignore")
class TestAlgorithms:
    @pytest.mark.parametrize(
        ("config", "env"),
        [
            (HTDQNConfig, "CartPole-v1"),
            (DQNConfig, "CartPole-v1"),
            (with_hare_tortoise(DQNConfig), "CartPole-v1"),
            (HTSACConfig, "Pendulum-v1"),
            (HTSACConfig, "CartPole-v1"),
        ],
    )
    def test_train_with_it(self, config: Any, env: str) -> None:
        made = small(config(), env, n_step=(1, 3)).env_runners(num_envs_per_env_runner=4)
        algorithm = made.build_algo()
        for _ in range(3):
            result = algorithm.train()
        buffer = algorithm.local_replay_buffer
        assert isinstance(buffer, NStepEpisodeReplayBuffer)
        assert buffer.envs == 4
        assert buffer.seed == (None if config is DQNConfig else 5)
        steps = result["num_env_steps_sampled_lifetime"]
        assert result["replay_buffer"]["num_env_steps_stored"] == len(buffer) == steps
        assert 1.5 < result["replay_buffer"]["actual_n_step"] <= 3
        assert result["learners"][MODULE]["td_error_mean"] > 0
        algorithm.stop()

    def test_with_frames_stacked_by_rllib(self) -> None:
        algorithm = (
            small(HTDQNConfig(), Frames, n_step=3)
            .training(replay_buffer_config={"stack": 4})
            .env_runners(
                env_to_module_connector=lambda env, spaces, device: FrameStackingEnvToModule(num_frames=4),
                episode_lookback_horizon=3,
            )
            .rl_module(model_config={"conv_filters": [[4, 4, 2], [8, 4, 2]], "head_fcnet_hiddens": [8]})
            .build_algo()
        )
        assert algorithm.train()["learners"][MODULE]["tortoise_updates"] > 0
        assert algorithm.get_module().observation_space.shape == (12, 12, 4)
        for one in algorithm.local_replay_buffer.sample(num_items=64, n_step=3):
            stack = one.get_observations(0)
            begins = [int(frame[5].argmax()) if frame.any() else -1 for frame in np.moveaxis(stack, -1, 0)]
            newest = begins[-1]
            assert begins == [max(newest - back, -1) for back in (3, 2, 1, 0)]
        algorithm.stop()

    def test_the_same_seed_gives_the_same_run(self) -> None:
        seen = []
        for _ in range(2):
            algorithm = small(HTDQNConfig(), "CartPole-v1", n_step=3).build_algo()
            for _ in range(2):
                algorithm.train()
            seen.append(algorithm.learner_group._learner.module[MODULE].state_dict())
            algorithm.stop()
        assert equal(dict(seen[0]), dict(seen[1]))

    @pytest.mark.parametrize("kind", [PATH, "PrioritizedEpisodeReplayBuffer"])
    def test_checkpoints_hold_the_buffer_where_asked_for(self, kind: str, tmp_path: Path) -> None:
        config = small(with_hare_tortoise(DQNConfig)(), "CartPole-v1", store_buffer_in_checkpoints=True)
        config.training(replay_buffer_config={"type": kind, "alpha": 0.6, "beta": 0.4})
        algorithm = config.build_algo()
        algorithm.train()
        held = algorithm.local_replay_buffer.get_state()
        algorithm.save_to_path(tmp_path / "with")
        algorithm.config._is_frozen = False
        algorithm.config.store_buffer_in_checkpoints = False
        algorithm.save_to_path(tmp_path / "without")
        algorithm.stop()

        restored = Algorithm.from_checkpoint(tmp_path / "with")
        if kind == PATH:
            again = restored.local_replay_buffer
            assert equal(again.get_state()["replay"], held["replay"])
            assert len(again) > 0
        else:
            assert len(restored.local_replay_buffer) == held["_num_timesteps"] > 0
        assert restored.train()["learners"][MODULE]["tortoise_updates"] > 0
        with pytest.warns(SettingWarning, match="the checkpoint holds no replay buffer"):
            restored.restore_from_path(tmp_path / "without")
        restored.stop()
        del algorithm, restored

    def test_any_algorithm_can_have_the_mixin(self, tmp_path: Path) -> None:
        class OwnDQN(ReplayAlgorithm, DQN):
            pass

        config = small(DQNConfig(algo_class=OwnDQN), "CartPole-v1", store_buffer_in_checkpoints=True)
        algorithm = config.build_algo()
        algorithm.train()
        assert algorithm.local_replay_buffer.seed == 5
        state = algorithm.get_state()
        other = config.build_algo()
        other.set_state(state)
        one, two = (a.local_replay_buffer.sample(num_items=16, n_step=1) for a in (algorithm, other))
        assert str([e.get_state()["observations"] for e in one]) == str([e.get_state()["observations"] for e in two])
        for a in (algorithm, other):
            a.stop()

    @pytest.mark.slow
    def test_remote_env_runners(self) -> None:
        config = small(HTDQNConfig(), "CartPole-v1", n_step=3)
        config.env_runners(num_env_runners=2, num_envs_per_env_runner=2, num_cpus_per_env_runner=0.5)
        algorithm = config.build_algo()
        with warnings.catch_warnings():
            warnings.simplefilter("error", SettingWarning)
            for _ in range(3):
                result = algorithm.train()
        assert algorithm.local_replay_buffer.envs == 4
        assert result["learners"][MODULE]["tortoise_updates"] > 0
        algorithm.stop()

    @pytest.mark.slow
    @pytest.mark.timeout(900)
    def test_three_steps_learn_cartpole(self) -> None:
        algorithm = (
            small(HTDQNConfig(), "CartPole-v1", n_step=3, lr=1e-3, momentum=0.98, reset_interval=1000)
            .training(epsilon=[(0, 1.0), (2000, 0.05)], training_intensity=32, train_batch_size_per_learner=32)
            .training(num_steps_sampled_before_learning_starts=500, replay_buffer_config={"capacity": 20_000})
            .rl_module(model_config={**SMALL, "fcnet_hiddens": [64], "head_fcnet_hiddens": [64]})
            .reporting(min_sample_timesteps_per_iteration=1000)
            .build_algo()
        )
        returns = [algorithm.train()["env_runners"]["episode_return_mean"] for _ in range(6)]
        assert returns[0] < 40
        assert max(returns[3:]) > 120
        algorithm.stop()
