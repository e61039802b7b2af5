"""Games against gymnasium's wrappers, and their continuation in another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ale_py
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from ht_ray.agents.envs.atari import AtariConfig, AtariGame
from ht_ray.agents.envs.games import ATARI_100K_GAMES, game_name, rom_name
from ht_ray.errors import SettingError


def reference(game: str, *, life_loss: bool) -> gymnasium.Env:
    env = ale_py.AtariEnv(rom_name(game), frameskip=1, repeat_action_probability=0.0)
    wrapped = AtariPreprocessing(env, noop_max=0, terminal_on_life_loss=life_loss)
    return FrameStackObservation(wrapped, 4, padding_type="zero")


@pytest.mark.parametrize("game", ["Breakout", "Qbert", "Freeway"])
def test_whole_games_equal_gymnasiums(game: str) -> None:
    ours = AtariGame(game, AtariConfig(noops=0, life_loss=False, clip_rewards=False))
    theirs = reference(game, life_loss=False)
    rng = np.random.default_rng(0)
    mine, _ = ours.reset(seed=3)
    other, _ = theirs.reset(seed=3)
    games = 0
    np.testing.assert_array_equal(mine, other)
    for _ in range(600):
        action = int(rng.integers(ours.actions))
        mine, reward, terminated, truncated, _ = ours.step(action)
        other, *rest, _ = theirs.step(action)
        np.testing.assert_array_equal(mine, other)
        assert [reward, terminated, truncated] == rest
        if terminated:
            games += 1
            mine, _ = ours.reset()
            other, _ = theirs.reset()
            np.testing.assert_array_equal(mine, other)
    assert games or game == "Freeway"


def test_lives_lost_end_episodes_as_gymnasiums() -> None:
    ours = AtariGame("Breakout", AtariConfig(noops=0))
    theirs = reference("Breakout", life_loss=True)
    rng = np.random.default_rng(1)
    ours.reset(seed=0)
    theirs.reset(seed=0)
    lost = steps = 0
    score = 0.0
    while lost < 5:
        action = int(rng.integers(ours.actions))
        mine, reward, terminated, _, info = ours.step(action)
        other, raw, over, *_ = theirs.step(action)
        np.testing.assert_array_equal(mine, other)
        assert (info["reward"], reward, terminated) == (raw, np.sign(raw), over)
        score, steps = score + raw, steps + 1
        if terminated:
            lost += 1
            if lost == 5:
                break
            before = ours.get_state()
            mine, _ = ours.reset()
            assert ours.get_state()["emulator"] == before["emulator"]  # not one frame was emulated
            np.testing.assert_array_equal(mine[-1], other[-1])
            assert not mine[:-1].any()
            # gymnasium knows only whole games: a new life's stack of zeros is put into its wrapper by hand.
            theirs.obs_queue.extend(np.zeros((3, 84, 84), np.uint8))
            theirs.obs_queue.append(other[-1])
    assert (info["score"], info["steps"]) == (score, steps)


def test_rewards_are_clipped_and_scores_are_not() -> None:
    env = AtariGame("Alien", AtariConfig(max_steps=300, life_loss=False))
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    raw = clipped = 0.0
    ended = False
    while not ended:
        _, reward, terminated, truncated, info = env.step(rng.integers(env.actions))
        assert reward in (-1.0, 0.0, 1.0)
        assert reward == np.sign(info["reward"])
        raw, clipped = raw + info["reward"], clipped + reward
        ended = terminated or truncated
    assert info["score"] == raw > clipped > 0


def test_steps_are_capped_over_the_lives_of_a_game() -> None:
    env = AtariGame("Breakout", AtariConfig(max_steps=60, noops=0))
    rng = np.random.default_rng(2)
    env.reset(seed=0)
    lost = 0
    for step in range(1, 61):
        _, _, terminated, truncated, info = env.step(rng.integers(env.actions))
        assert truncated == (step == 60)
        if terminated:
            lost += 1
            env.reset()
    assert lost
    assert info["steps"] == 60
    fresh, _ = env.reset()
    np.testing.assert_array_equal(fresh, AtariGame("Breakout", AtariConfig(noops=0)).reset(seed=0)[0])


def test_a_step_after_the_end_is_refused() -> None:
    env = AtariGame("Pong", AtariConfig(max_steps=1))
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        env.step(0)
    env.reset()
    env.step(0)
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        env.step(0)


@pytest.mark.parametrize("action", [-1, 6])
def test_an_action_that_is_none_is_refused(action: int) -> None:
    env = AtariGame("Pong")
    env.reset()
    with pytest.raises(ValueError, match=f"action = {action}: Pong has actions 0 to 5"):
        env.step(action)


def test_no_ops_are_from_0_to_30_and_follow_the_seed() -> None:
    # Each no-op is one frame: read off the emulator's own count.
    env = AtariGame("Freeway")

    def counts(seed: int) -> list[int]:
        env.reset(seed=seed)
        first = env._ale.getEpisodeFrameNumber()
        rest = []
        for _ in range(60):
            env._running = env._goes_on = False
            env.reset()
            rest.append(env._ale.getEpisodeFrameNumber())
        return [first, *rest]

    bare = AtariGame("Freeway", AtariConfig(noops=0))
    bare.reset(seed=0)
    start = bare._ale.getEpisodeFrameNumber()
    drawn = [count - start for count in counts(5)]
    assert drawn == [count - start for count in counts(5)]
    assert drawn != [count - start for count in counts(6)]
    assert set(drawn) <= set(range(31))
    assert len(set(drawn)) > 20
    assert min(drawn) <= 2 and max(drawn) >= 28


def test_a_seeded_start_does_not_depend_on_what_was_played() -> None:
    env = AtariGame("Krull")  # a game that remembers what was played, unless it is switched on anew
    first, _ = env.reset(seed=4)
    after = [env.step(1)[0] for _ in range(40)]
    for _ in range(3):
        env.reset()
        for _ in range(30):
            env.step(3)
    again, _ = env.reset(seed=4)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(after, [env.step(1)[0] for _ in range(40)])


def test_sticky_actions_repeat_the_last_one() -> None:
    def frames(sticky: float, seed: int) -> np.ndarray:
        env = AtariGame("Pong", AtariConfig(sticky=sticky, noops=0))
        env.reset(seed=seed)
        return np.stack([env.step(2 + step % 2)[0][-1] for step in range(60)])

    plain = frames(0.0, 0)
    np.testing.assert_array_equal(plain, frames(0.0, 1))  # without them, and without no-ops, nothing is random
    np.testing.assert_array_equal(frames(0.25, 1), frames(0.25, 1))
    assert (frames(0.25, 1) != frames(0.25, 2)).any()


def test_observations_are_not_changed_later() -> None:
    env = AtariGame("Pong")
    kept = [env.reset(seed=0)[0]]
    copies = [kept[0].copy()]
    for _ in range(10):
        kept.append(env.step(2)[0])
        copies.append(kept[-1].copy())
    np.testing.assert_array_equal(kept, copies)
    kept[-1][:] = 7  # and what a caller does to them is not seen
    assert not (env.step(2)[0][:3] == 7).all()


CONTINUE = """
import sys, torch, numpy as np
from ht_ray.agents.envs.atari import AtariConfig, AtariGame
for path in sys.argv[1:]:
    saved = torch.load(path, weights_only=True)
    env = AtariGame(saved["state"]["game"], AtariConfig(**saved["state"]["config"]))
    env.set_state(saved["state"])
    rows = []
    for action in saved["actions"]:
        observation, *rest = env.step(action)
        rows.append((torch.from_numpy(observation), rest))
        if rest[1] or rest[2]:
            rows.append((torch.from_numpy(env.reset()[0]), []))
    torch.save(rows, path + ".continued")
"""


def test_a_game_continues_in_another_process(tmp_path: Path) -> None:
    # Qbert is the game whose saved states depend on what the new emulator did before; sticky actions need the last one.
    cases = [("Breakout", 0.0, 37), ("Qbert", 0.0, 61), ("Pong", 0.25, 20), ("Krull", 0.25, 90)]
    wanted = {}
    for game, sticky, steps in cases:
        rng = np.random.default_rng(steps)
        env = AtariGame(game, AtariConfig(sticky=sticky, max_steps=150), seed=9)
        env.reset()
        for _ in range(steps):
            if any(env.step(rng.integers(env.actions))[2:4]):
                env.reset()
        path = tmp_path / f"{game}.pt"
        actions = rng.integers(env.actions, size=120).tolist()
        torch.save({"state": env.get_state(), "actions": actions}, path)
        rows = []
        for action in actions:
            observation, *rest = env.step(action)
            rows.append((observation, rest))
            if rest[1] or rest[2]:
                rows.append((env.reset()[0], []))
        wanted[path] = rows
    subprocess.run([sys.executable, "-c", CONTINUE, *map(str, wanted)], check=True)
    for path, rows in wanted.items():
        continued = torch.load(f"{path}.continued", weights_only=True)
        assert len(continued) == len(rows)
        for (observation, rest), (other, other_rest) in zip(rows, continued, strict=True):
            np.testing.assert_array_equal(observation, other.numpy())
            assert rest == list(other_rest)


@pytest.mark.slow
@pytest.mark.parametrize("game", ATARI_100K_GAMES)
def test_every_game_continues_from_any_point(game: str) -> None:
    rng = np.random.default_rng(0)
    env, other = AtariGame(game), AtariGame(game)
    env.reset(seed=0)
    for _ in range(8):
        for _ in range(int(rng.integers(5, 60))):
            if any(env.step(rng.integers(env.actions))[2:4]):
                env.reset()
        other.set_state(env.get_state())
        np.testing.assert_array_equal(env.observation, other.observation)
        for _ in range(10):
            action = rng.integers(env.actions)
            mine, *rest = env.step(action)
            theirs, *other_rest = other.step(action)
            np.testing.assert_array_equal(mine, theirs)
            assert rest == other_rest
            if any(rest[1:3]):
                np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


def test_a_state_of_another_game_is_refused() -> None:
    state = AtariGame("Pong").get_state()
    with pytest.raises(ValueError, match="the state is of Pong"):
        AtariGame("Breakout").set_state(state)
    with pytest.raises(ValueError, match="the state is of Pong"):
        AtariGame("Pong", AtariConfig(life_loss=False)).set_state(state)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasiums_checker_passes() -> None:
    check_env(AtariGame("Pong"), skip_render_check=True)


def test_names() -> None:
    assert len(ATARI_100K_GAMES) == 26
    for name in ATARI_100K_GAMES:
        spellings = (name, name.lower(), rom_name(name), f"ALE/{name}-v5", f"{name}NoFrameskip-v4")
        assert {game_name(spelling) for spelling in spellings} == {name}
        assert Path(ale_py.roms.get_rom_path(rom_name(name))).exists()
    with pytest.raises(SettingError, match="Did you mean 'MsPacman'"):
        AtariGame("MissPacman")
    with pytest.raises(SettingError, match="26 games of Atari-100k"):
        game_name("Tetris")


@pytest.mark.parametrize(
    "setting", [{"frame_skip": 0}, {"noops": -1}, {"sticky": 1.0}, {"max_steps": 0}, {"size": 1.5}, {"stack": 0}]
)
def test_settings_are_checked(setting: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=rf"AtariConfig\.{next(iter(setting))}"):
        AtariConfig(**setting)  # type: ignore[arg-type]
