"""Continual RL: streams of tasks, problems whose world changes, the loop, its measures and its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from ht_ray.agents.continual import (
    TASK_STREAMS,
    AtariModesConfig,
    ContinualRun,
    ControlStreamConfig,
    Task,
    TaskStreamConfig,
    measure,
    register_task_stream,
    task_stream_config,
    with_methods,
)
from ht_ray.agents.continual.__main__ import main
from ht_ray.agents.dqn.agent import DQNAgent
from ht_ray.agents.dqn.config import DQNConfig
from ht_ray.agents.envs.control import CONTROL, ControlConfig, ControlGame
from ht_ray.agents.replay import Batch
from ht_ray.errors import Interrupted, SettingError
from ht_ray.methods import METHODS

SMALL: dict[str, Any] = {"hidden": 8, "learning_starts": 20, "epsilon_decay_steps": 20, "batch_size": 8}
FOR_AGENTS = [
    name for name, cls in METHODS.items() if cls.not_for_agents is None and name not in ("ema", "self_distillation")
]


def small_run(config: DQNConfig | None = None, seed: int = 0, **settings: Any) -> ContinualRun:
    stream = ControlStreamConfig(tasks=2, cycles=2, visit_steps=60, max_steps=25)
    return ContinualRun(stream, config or DQNConfig(**SMALL), seed=seed, curve_points=3, **settings)


def finished(run: ContinualRun) -> ContinualRun:
    while run.advance():
        pass
    return run


@pytest.mark.parametrize(
    "name, published", [("CartPole", "CartPole-v1"), ("Acrobot", "Acrobot-v1"), ("MountainCar", "MountainCar-v0")]
)
def test_a_problem_is_gymnasiums_until_it_is_changed(name: str, published: str) -> None:
    env = gymnasium.make(published).unwrapped
    game = ControlGame(name)
    game.reset(seed=0)
    raw, _ = env.reset(seed=0)
    env.state = game._env.state
    middle, scale = np.array(CONTROL[name].middle), np.array(CONTROL[name].scale)
    draws = np.random.default_rng(0)
    for _ in range(30):
        action = int(draws.integers(game.actions))
        seen, reward, terminated, _, _ = game.step(action)
        raw, expected, ended, _, _ = env.step(action)
        np.testing.assert_allclose(seen[0], (raw - middle) / scale, rtol=1e-5, atol=1e-6)
        assert (reward, terminated) == (expected, ended)
        if terminated:
            break


def test_worlds_change_what_they_say() -> None:
    plain, changed = (
        ControlGame("CartPole"),
        ControlGame("CartPole", ControlConfig(order=(2, 0, 3, 1), signs=(1, -1, 1, 1), reward_sign=-1)),
    )
    one, two = plain.reset(seed=1)[0][0], changed.reset(seed=1)[0][0]
    np.testing.assert_allclose(two, [one[2], -one[0], one[3], one[1]])
    assert changed.step(0)[1] == -plain.step(0)[1] == -1
    heavy = ControlGame("CartPole", ControlConfig(dynamics={"length": 2.0, "mass": 3.0}))
    assert heavy._env.length == 1.0 and heavy._env.polemass_length == pytest.approx(0.3)
    assert heavy._env.total_mass == pytest.approx(1.3)
    assert not np.array_equal(heavy.reset(seed=1)[0], heavy.step(1)[0])
    for settings in ({"order": (0, 0, 1, 2)}, {"signs": (1, 1)}, {"dynamics": {"inertia": 2.0}}):
        with pytest.raises(SettingError, match="ControlConfig"):
            ControlConfig(**settings).make("CartPole")


@pytest.mark.parametrize("name", CONTROL)
def test_a_game_goes_on_from_its_state(name: str) -> None:
    game = ControlGame(name, ControlConfig(max_steps=30))
    game.reset(seed=4)
    for _ in range(5):
        game.step(0)
    state = json.loads(json.dumps(game.get_state()))
    other = ControlGame(name, ControlConfig(max_steps=30))
    other.set_state(state)
    for _ in range(40):
        one, two = game.step(1), other.step(1)
        assert np.array_equal(one[0], two[0]) and one[1:] == two[1:]
        if one[2] or one[3]:
            assert np.array_equal(game.reset()[0], other.reset()[0])
    with pytest.raises(ValueError, match="another world"):
        ControlGame(name).set_state(state)


def test_streams_are_drawn_by_the_seed_and_begin_with_the_published_problem() -> None:
    stream = ControlStreamConfig(tasks=3, cycles=2, change="all")
    one, two, other = stream.make(seed=0), stream.make(seed=0), stream.make(seed=1)
    assert one == two != other and len(one) == 6 and one.steps == 12_000
    assert one.tasks[0].env == ControlConfig() and one.tasks[1].env.reward_sign == -1  # type: ignore[attr-defined]
    assert set(one.tasks[1].env.dynamics) == set(CONTROL["CartPole"].dynamics)  # type: ignore[attr-defined]
    with pytest.raises(SettingError, match="Did you mean 'control'"):
        task_stream_config("contrl")
    with pytest.raises(SettingError, match=r"change = 'observations': .* Did you mean 'observation'"):
        ControlStreamConfig(change="observations")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="no other stream has"):
        register_task_stream("control")(ControlStreamConfig)


def test_an_update_of_dqn_is_double_q_learning() -> None:
    agent = DQNAgent(DQNConfig(**SMALL, momentum=0.5), shape=(1, 4), num_actions=2, seed=1)
    draws = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 6, 1, 4, generator=draws)
    batch = Batch(
        one,
        torch.tensor([0, 1] * 3),
        torch.randn(6, generator=draws),
        two,
        torch.full((6,), 0.9),
        torch.arange(6),
        torch.ones(6),
    )
    network = agent.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        best = network(two)[:, :, 0].argmax(1)
        goals = batch.returns + 0.9 * agent.target(two)[range(6), best, 0]  # type: ignore[misc]
        errors = network(one)[range(6), batch.actions, 0] - goals
    expected = torch.where(errors.abs() < 1, errors**2 / 2, errors.abs() - 0.5)
    measured = agent.update(batch)
    torch.testing.assert_close(measured["losses"], expected)
    for name, tensor in agent.target.state_dict().items():  # type: ignore[union-attr]
        torch.testing.assert_close(tensor, (before[name] + network.state_dict()[name]) / 2)
    with pytest.raises(SettingError, match=r"DQNConfig\.shift = 4: accepted is 0"):
        DQNConfig(shift=4)


def test_crelu_keeps_the_number_of_features() -> None:
    agent = DQNAgent(DQNConfig(hidden=8, activation="crelu", layers=3), shape=(1, 4), num_actions=2)
    shapes = [tuple(p.shape) for name, p in agent.network.named_parameters() if name.endswith("weight")]
    assert shapes == [(4, 4), (4, 8), (4, 8), (2, 8)]


@pytest.mark.parametrize("method", [*FOR_AGENTS, "crelu", "deep_fourier", "layer_norm", "hare_tortoise+redo"])
def test_every_method_acts_on_the_agent(method: str) -> None:
    config = with_methods(DQNConfig(**SMALL), method, interval=30)
    weights = finished(small_run(config)).agent.network.state_dict()
    plain = finished(small_run()).agent.network.state_dict()
    changed = weights.keys() != plain.keys() or any(
        weights[name].shape != plain[name].shape or not torch.equal(weights[name], plain[name]) for name in weights
    )
    assert changed == (method not in ("plain", "continual_backprop"))  # which waits for units to mature


def test_areas_and_returns_are_those_of_the_games_that_were_played() -> None:
    run = small_run()
    played: list[list[dict[str, float]]] = [[]]
    step = run.collector.step

    def noted(act: Any) -> Any:
        ended = step(act)
        if ended is not None:
            played[-1].append(ended)
        return ended

    run.collector.step = noted  # type: ignore[method-assign]
    run.advance()
    returns = np.concatenate([np.full(int(game["steps"]), game["score"]) for game in played[0]])
    visit, curve = run.record.visits[0], run.record.curve
    assert visit["area"] == pytest.approx(returns.mean()) and len(curve) == 3
    assert curve[0]["return"] == pytest.approx(returns[:20].mean()) and curve[0]["step"] == 20
    finished(run)
    found = run.measures()
    assert found.area.shape == (2, 2) and np.isfinite(found.area).all()
    assert found.plasticity_loss[1, 1] == pytest.approx(found.area[1, 0] - found.area[1, 1])
    assert found.forgetting.shape == (2, 1)
    summary = found.summary()
    assert summary["plasticity_loss"] == pytest.approx(summary["first_area"] - summary["last_area"])
    assert np.isnan(measure([], tasks=1, cycles=1).summary()["forgetting"])


def test_a_run_goes_on_to_the_bit_and_evaluation_leaves_no_trace(tmp_path: Path) -> None:
    config = with_methods(DQNConfig(**SMALL), "hare_tortoise+redo", interval=30)
    whole = finished(small_run(config))
    run = small_run(config)
    run.advance()
    run.interrupt()
    with pytest.raises(Interrupted):
        run.advance()
    run.save(tmp_path / "run.bin")
    other = small_run(config)
    other.load(tmp_path / "run.bin")
    finished(other)
    assert other.record == whole.record
    for name, tensor in whole.agent.network.state_dict().items():
        assert torch.equal(tensor, other.agent.network.state_dict()[name])
    more = finished(small_run(config, evaluation_episodes=2))
    assert [row["return"] for row in more.record.curve] == [row["return"] for row in whole.record.curve]


def test_a_replay_may_be_kept_and_indicators_measured() -> None:
    run = finished(small_run(replay="keep", indicators=True))
    assert len(run.collector.replay) > 200
    assert all(0 <= row["dormant_ratio"] <= 1 for row in run.record.visits)
    cleared = finished(small_run())
    assert len(cleared.collector.replay) <= 62
    plain = finished(small_run(indicators=True))
    assert [row["return"] for row in plain.record.curve] == [row["return"] for row in cleared.record.curve]


def test_an_agent_without_an_average_gets_one_for_hare_and_tortoise() -> None:
    from ht_ray.agents import DrQConfig

    assert with_methods(DrQConfig(), "hare_tortoise", interval=9).momentum == 0.995
    assert with_methods(DrQConfig(), "hare_tortoise:momentum=0.9", interval=9).momentum == 0.9
    assert with_methods(DQNConfig(), "hare_tortoise", interval=9).momentum == DQNConfig().momentum


def test_tasks_with_other_actions_are_refused() -> None:
    class Mixed(TaskStreamConfig):
        name = "mixed"

        def make_tasks(self, *, seed: int) -> tuple[Task, ...]:
            return tuple(Task(game, game, ControlConfig()) for game in ("CartPole", "Acrobot"))

    with pytest.raises(SettingError, match="one network needs the same"):
        ContinualRun(Mixed())
    assert "mixed" not in TASK_STREAMS


def test_modes_of_a_game_are_played_by_drq() -> None:
    from ht_ray.agents import DrQConfig

    stream = AtariModesConfig(modes=(0, 1), cycles=1, visit_steps=12)
    config = DrQConfig(hidden=8, batch_size=2, learning_starts=8, n_step=2)
    run = ContinualRun(stream, config, curve_points=1, evaluation_episodes=1)
    run._evaluate = lambda visit, when: 0.0  # type: ignore[method-assign] # a whole game takes long
    finished(run)
    assert run.record.updates == 8 and run.record.tasks == [
        "Freeway mode 0, difficulty 0",
        "Freeway mode 1, difficulty 0",
    ]


def test_the_command_compares_goes_on_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "runs.jsonl"
    given = [
        "--tasks",
        "1",
        "--cycles",
        "2",
        "--visit-steps",
        "30",
        "--set",
        "hidden=8",
        "learning_starts=10",
        "--record",
        str(record),
    ]
    assert main([*given, "--methods", "plain", "hare_tortoise"]) == 0
    assert main([*given, "--methods", "plain", "hare_tortoise", "crelu", "--seeds", "2"]) == 0
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("plain", 0), ("hare_tortoise", 0), ("crelu", 0), ("plain", 1), ("hare_tortoise", 1), ("crelu", 1),
    ]  # fmt: skip
    capsys.readouterr()
    assert main([*given, "--game", "Acrobot"]) == 2 and "another comparison" in capsys.readouterr().err
    assert main(["--games", "Pong"]) == 2 and "setting = 'games'" in capsys.readouterr().err
    assert main(["--set", "hiden=8"]) == 2 and "Did you mean 'hidden'" in capsys.readouterr().err
    assert main(["--methods", "redoo"]) == 2 and "Did you mean 'redo'" in capsys.readouterr().err


@pytest.mark.parametrize("games", [["Krull", "RoadRunner"], ["Krull,RoadRunner"]])
def test_settings_of_several_values_are_given_apart_or_with_commas(
    games: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The studies take them apart, and this command took them with commas alone."""
    stream = ["--stream", "atari_games", "--games", *games]
    assert main([*stream, "--set", "none=1"]) == 2 and "no setting 'none'" in capsys.readouterr().err
    assert main([*stream, "Pongg"]) == 2 and "Did you mean 'Pong'" in capsys.readouterr().err


def test_a_record_that_a_kill_cut_short_is_gone_on_with_and_a_damaged_one_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "runs.jsonl"
    given = ["--tasks", "1", "--cycles", "1", "--visit-steps", "30", "--set", "hidden=8", "learning_starts=10"]
    given += ["--record", str(record), "--seeds", "2"]
    assert main(given) == 0
    whole = record.read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (len(whole) - 1, len(whole) - 100, len(whole) - len(lines[-1]) + 5):
        record.write_bytes(whole[:kept])
        capsys.readouterr()
        assert main(given) == 0 and record.read_bytes() == whole
        told = capsys.readouterr().err.splitlines()
        assert len(told) == (kept < len(whole) - 1) and all("last line was cut off" in text for text in told)
    for damaged in (lines[0] + lines[1][:50] + b"\n" + lines[2], b"a note of mine", lines[0] + b"\xff\xfe"):
        record.write_bytes(damaged)
        assert main(given) == 2 and record.read_bytes() == damaged
        assert f"line {1 if damaged.startswith(b'a') else 2} is damaged" in capsys.readouterr().err
