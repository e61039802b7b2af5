"""Names of the agents' package: what it exports and when it imports it, and the old names of settings."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

import pytest

import ht_ray.agents
from ht_ray._deprecated import current_names, old_names, renamed
from ht_ray.agents import BBFConfig, DrQConfig, agent_variant
from ht_ray.agents.base_config import OLD_NAMES
from ht_ray.agents.registry import AGENTS, agent_from_dict, make_agent, register_agent
from ht_ray.agents.replay import FrameReplay, ReplayConfig
from ht_ray.errors import SettingError, SettingWarning

VALUES = {"lr": 0.5, "adam_epsilon": 0.25, "prioritised": True, "reinitialise_tortoise": False}


@pytest.mark.parametrize("cls", [DrQConfig, BBFConfig])
@pytest.mark.parametrize("old", VALUES)
def test_old_names_warn_and_mean_the_same(cls: Any, old: str) -> None:
    new = OLD_NAMES[old]
    with pytest.warns(SettingWarning, match=f"{cls.__name__}: the setting '{old}' is called '{new}' now") as caught:
        config = cls(**{old: VALUES[old]})
    assert config == cls(**{new: VALUES[old]}) and caught[0].filename == __file__
    with pytest.warns(SettingWarning, match=f"'{old}' is called '{new}' now") as caught:
        assert getattr(config, old) == VALUES[old]
    assert caught[0].filename == __file__
    with pytest.raises(SettingError, match=f"'{new}' are the same setting"), pytest.warns(SettingWarning):
        cls(**{old: VALUES[old], new: VALUES[old]})


def test_old_names_in_variants_and_in_what_was_saved() -> None:
    with pytest.warns(SettingWarning, match="'lr' is called 'learning_rate' now") as caught:
        config = agent_variant("drq+ht", lr=0.5)
    assert config == agent_variant("drq+ht", learning_rate=0.5) and caught[0].filename == __file__
    saved = asdict(config)
    earlier = {old: saved.pop(new) for old, new in OLD_NAMES.items()} | saved
    del earlier["methods"], earlier["method_settings"]
    with pytest.warns(SettingWarning):
        assert agent_from_dict(earlier) == config


def test_old_names_of_the_replay() -> None:
    with pytest.warns(SettingWarning, match="ReplayConfig: the setting 'prioritised' is called 'prioritized' now"):
        assert ReplayConfig(prioritised=True) == ReplayConfig(prioritized=True)  # type: ignore[call-arg]
    with pytest.warns(SettingWarning, match="FrameReplay"):
        replay = FrameReplay(100, frame_shape=(2, 2), prioritised=True)  # type: ignore[call-arg]
    assert replay.prioritized
    with pytest.raises(TypeError, match="unexpected keyword argument 'prioritise'"):
        FrameReplay(100, prioritise=True)  # type: ignore[call-arg]
    state = replay.state_dict()
    state["settings"]["prioritised"] = state["settings"].pop("prioritized")
    replay.load_state_dict(state)


def test_names_of_a_class_that_is_derived() -> None:
    @renamed(lr="rate")
    @dataclass(frozen=True)
    class Config:
        rate: float = 0.1

    @renamed(old="new")
    @dataclass(frozen=True)
    class Derived(Config):
        new: int = 1

    with pytest.warns(SettingWarning):
        assert Derived(lr=0.5, old=2) == Derived(rate=0.5, new=2)  # type: ignore[call-arg]
    assert old_names(Derived) == {"lr": "rate", "old": "new"} and old_names(Config) == {"lr": "rate"}
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        _ = Derived().other  # type: ignore[attr-defined]
    with pytest.raises(SettingError, match=r"Owner has no setting 'rat'\. Did you mean 'rate'"):
        current_names("Owner", {"rat": 1}, {}, {"rate": 0})


def test_every_name_is_there() -> None:
    for name in ht_ray.agents.__all__:
        assert getattr(ht_ray.agents, name) is not None
    assert set(ht_ray.agents.__all__) <= set(dir(ht_ray.agents))
    assert ht_ray.agents.augment.__name__ == "augment" and ht_ray.agents.AGENTS is AGENTS
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        _ = ht_ray.agents.trane


@pytest.mark.parametrize(
    "imports",
    [
        "import ht_ray.agents.train as module; from ht_ray.agents import train; assert module is train",
        "from ht_ray.agents import train; import ht_ray.agents.train as module; assert module is train",
    ],
)
def test_one_name_is_command_and_function(imports: str) -> None:
    code = (
        "import sys, inspect, ht_ray.agents\n"
        "assert not {'torch', 'gymnasium', 'ale_py', 'cv2'} & set(sys.modules)\n"
        f"{imports}\n"
        "from ht_ray.agents.train import main; from ht_ray.agents.training.train import train as function\n"
        "assert train is ht_ray.agents.train and inspect.signature(train) == inspect.signature(function)\n"
        "from ht_ray.agents import DrQConfig\n"
        "print(train('Pong', DrQConfig(hidden=8), steps=2, evaluation_episodes=0).steps, main.__name__)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=250)
    assert found.stdout == "2 main\n"


def test_an_agent_is_one_registered_class(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingError, match="called 'drq' already"):
        register_agent("drq", AGENTS["bbf"].agent, {})
    with pytest.raises(SettingError, match=r"called 'drq\+ht' already"):
        register_agent("mine", AGENTS["drq"].agent, {"drq+ht": DrQConfig()})
    assert list(AGENTS) == ["drq", "bbf", "dqn"]
    assert [(kind.agent.__name__, kind.config.__name__) for kind in AGENTS.values()] == [
        ("DrQAgent", "DrQConfig"),
        ("BBFAgent", "BBFConfig"),
        ("DQNAgent", "DQNConfig"),
    ]
    with pytest.raises(SettingError, match="ReplayConfig: accepted are settings of drq, bbf, dqn"):
        make_agent(ReplayConfig(), shape=(4, 84, 84), num_actions=3)  # type: ignore[arg-type]
