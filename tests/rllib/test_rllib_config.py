"""The config mixins: settings, what is refused before anything is built, and configs that travel."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
from ray.rllib.algorithms.dqn.dqn import DQN, DQNConfig
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.algorithms.ppo.ppo import PPOConfig
from ray.rllib.algorithms.sac.sac import SACConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from rllib_agents import DISCRETE, MODULE, configured

from ht_ray.rllib import (
    HTDQN,
    HareTortoiseConfig,
    HareTortoiseLearner,
    HeadResetConfig,
    HeadResetLearner,
    HTDQNConfig,
    HTSACConfig,
    NStepEpisodeReplayBuffer,
    SettingError,
    ShrinkPerturbLearner,
    with_hare_tortoise,
)

MIXINS = (HareTortoiseLearner, ShrinkPerturbLearner, HeadResetLearner)


class OwnLearner(DQNTorchLearner):
    pass


class OwnConfig(DQNConfig):
    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class=algo_class)
        self.tau = 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reset_interval": 0}, r"reset_interval = 0: accepted is a whole number with 1 <= reset_interval"),
        ({"shrink_perturb_interval": 0}, "shrink_perturb_interval = 0"),
        ({"head_reset_interval": -1}, "head_reset_interval = -1"),
        ({"indicators_interval": 0.5}, "indicators_interval = 0.5"),
        ({"momentum": "0.9"}, "momentum = '0.9': accepted is a number"),
        ({"reinitialize_tortoise": "no"}, "reinitialize_tortoise = 'no': accepted is True or False"),
        ({"act_with_tortoise": 1}, "act_with_tortoise = 1: accepted are True and False"),
        ({"momentum": 1.0}, "momentum = 1.0: accepted is a number with 0 <= momentum < 1"),
        ({"tau": 0.0}, r"tau = 0.0: accepted is a number with 0 < tau <= 1"),
        ({"tau": 1e-30}, "tau = 1e-30: accepted is a number of 1e-16 or more"),
        ({"optimizer_state": "cleared"}, "Did you mean 'clear'"),
        ({"toward": "zero"}, "toward = 'zero': accepted are 'fresh', 'initial'"),
        ({"shrink_perturb_ratio": 1.5}, "shrink_perturb_ratio = 1.5"),
        ({"shrink_perturb_noise": -1.0}, "shrink_perturb_noise = -1.0"),
        ({"reset_parts": "vf"}, "reset_parts = 'vf': accepted are one or more names"),
        ({"reset_parts": 5}, "reset_parts = 5: accepted are one or more names"),
        ({"reset_parts": ()}, r"reset_parts = \(\): accepted are one or more names"),
        ({"target_network_update_freq": 500}, "target_network_update_freq = 500: accepted is 0"),
        ({"target_network_update_freq": 1}, "follows every optimizer step"),
    ],
)
def test_settings_are_checked_by_validate(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        HTDQNConfig().training(**settings).validate()


def test_momentum_and_tau_are_the_same_setting() -> None:
    assert HTDQNConfig().tortoise_momentum == 0.995
    assert HTDQNConfig().training(tau=0.1).tortoise_momentum == 0.9
    assert HTDQNConfig().training(momentum=0.9).tortoise_momentum == 0.9
    assert with_hare_tortoise(OwnConfig)().tortoise_momentum == 0.98
    with_hare_tortoise(OwnConfig)().training(momentum=0.9).validate()
    with pytest.raises(SettingError, match=r"momentum = 0.9 and tau = 0.005: accepted is one of the two"):
        HTDQNConfig().training(momentum=0.9, tau=0.005)
    with pytest.raises(SettingError, match="one of the two"):
        HTDQNConfig().training(tau=0.1).training(momentum=0.5).validate()
    with pytest.raises(SettingError, match="one of the two"):
        HTDQNConfig().update_from_dict({"momentum": 0.5, "tau": 0.1}).validate()


@pytest.mark.parametrize("tau", [1e-15, 2e-16, 1e-16, 1e-17, 1e-30, 5e-324])
def test_a_tau_is_refused_by_validate_or_can_be_built(tau: float) -> None:
    config = configured(HTDQNConfig(), tau=tau, reset_interval=None)
    try:
        config.validate()
    except SettingError:
        assert tau < 1e-16
    else:
        assert tau >= 1e-16
        config.build_learner(spaces={MODULE: DISCRETE})


def test_unknown_settings_are_told_with_the_nearest() -> None:
    with pytest.raises(SettingError, match=r"no setting 'momentun'\. Did you mean 'momentum'"):
        HTDQNConfig().training(momentun=0.9)
    with pytest.raises(SettingError, match=r"no setting 'n_stepp'\. Did you mean 'n_step'"):
        HTSACConfig().training(n_stepp=2)
    # In a dict, as Ray Tune's, RLlib takes any name.
    with pytest.raises(SettingError, match=r"no setting 'reset_intervall'\. Did you mean 'reset_interval'"):
        HTDQNConfig().update_from_dict({"reset_intervall": 10})
    assert HTDQNConfig().update_from_dict({"of_my_own": 10}).of_my_own == 10


class BareConfig(DQNConfig):
    """As users write them: no argument, settings that are not keyword-only."""

    def __init__(self) -> None:
        super().__init__()
        self.tau = 0.1
        self.temper = 0

    def training(self, temper: int = 0, **kwargs: Any) -> Any:
        super().training(**kwargs)
        self.temper = temper
        return self


def test_own_config_may_be_written_otherwise() -> None:
    config = with_hare_tortoise(BareConfig)().training(temper=3, reset_interval=20)
    config.validate()
    assert (config.temper, config.reset_interval, config.tortoise_momentum) == (3, 20, 0.9)
    with pytest.raises(SettingError, match="Did you mean 'temper'"):
        config.training(tempr=1)


def test_another_algorithm_does_not_drop_the_settings_unnoticed() -> None:
    # As Tune does it, told the algorithm "DQN": its config takes any name, and would train without a tortoise.
    config = configured(HTDQNConfig(), momentum=0.9)
    taken = DQN.get_default_config().update_from_dict(config.to_dict())
    with pytest.raises(SettingError, match=r"config\.algo_class"):
        taken.build_learner(spaces={MODULE: DISCRETE})
    # Given the config itself, it keeps it.
    assert isinstance(DQN.get_default_config().from_state(config.get_state()), HTDQNConfig)


@pytest.mark.parametrize("config", [PPOConfig])
def test_algorithms_without_a_target_network_are_refused(config: type) -> None:
    with pytest.raises(SettingError, match="is not one with a target network"):
        with_hare_tortoise(config)().validate()


def test_what_else_cannot_work_is_refused() -> None:
    with pytest.raises(SettingError, match="new API stack"):
        HTDQNConfig().api_stack(enable_rl_module_and_learner=False, enable_env_runner_and_connector_v2=False).validate()
    with pytest.raises(SettingError, match="act_with_tortoise = True: the policy that acts has no target"):
        HTSACConfig().training(act_with_tortoise=True).validate()
    own = RLModuleSpec(module_class=DefaultDQNTorchRLModule)
    with pytest.raises(SettingError, match="derive the module DefaultDQNTorchRLModule from"):
        HTDQNConfig().rl_module(rl_module_spec=own).training(act_with_tortoise=True).validate()
    with pytest.raises(SettingError, match="COMPLETE_UPDATE"):
        HTDQNConfig().framework(
            torch_compile_learner=True, torch_compile_learner_what_to_compile="complete_update"
        ).validate()
    with pytest.raises(SettingError, match="reset_interval = 0"):
        HTDQNConfig().multi_agent(
            policies={"a"},
            policy_mapping_fn=lambda agent, episode, **kwargs: "a",
            algorithm_config_overrides_per_module={"a": HTDQNConfig.overrides(reset_interval=0)},
        ).validate()
    with pytest.raises(SettingError, match="act_with_tortoise = True for one module: accepted is that of"):
        HTDQNConfig().multi_agent(
            policies={"a"},
            policy_mapping_fn=lambda agent, episode, **kwargs: "a",
            algorithm_config_overrides_per_module={"a": HTDQNConfig.overrides(act_with_tortoise=True)},
        ).validate()
    evaluation = HTDQNConfig.overrides(act_with_tortoise=True)
    with pytest.raises(SettingError, match="act_with_tortoise = True for evaluation: those that play in training"):
        HTDQNConfig().evaluation(evaluation_config=evaluation).validate()
    HTDQNConfig().training(act_with_tortoise=True).evaluation(evaluation_config=evaluation).validate()
    with pytest.raises(SettingError, match=r"HTDQNConfig.methods = \['redo'\]: accepted is methods' names, joined by"):
        HTDQNConfig().training(methods=["redo"])  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="accepted is a class of configs"):
        with_hare_tortoise(DQNConfig())  # type: ignore[arg-type]


def test_learner_is_put_together() -> None:
    assert issubclass(HTDQNConfig().learner_class, (*MIXINS[:1], DQNTorchLearner))
    assert all(issubclass(HTDQNConfig().learner_class, mixin) for mixin in MIXINS)
    assert HTDQNConfig().learner_class is HTDQNConfig().learner_class
    own = HTDQNConfig().training(learner_class=OwnLearner).learner_class
    assert issubclass(own, OwnLearner) and issubclass(own, HareTortoiseLearner)

    class Config(HeadResetConfig, DQNConfig):
        pass

    alone = Config().training(head_reset_interval=10).learner_class
    assert issubclass(alone, HeadResetLearner) and not issubclass(alone, HareTortoiseLearner)
    Config().training(head_reset_interval=10, target_network_update_freq=100).validate()


def test_own_configs_travel() -> None:
    cls = with_hare_tortoise(OwnConfig)
    assert cls is with_hare_tortoise(OwnConfig)
    assert with_hare_tortoise(cls) is cls
    assert repr(cls) == "<class 'ht_ray.rllib.methods.config.HareTortoiseOwnConfig'>"
    config = configured(cls(), reset_interval=7).environment(observation_space=DISCRETE[0], action_space=DISCRETE[1])
    copied = ray.cloudpickle.loads(ray.cloudpickle.dumps(config))
    assert copied.reset_interval == 7
    assert copied.learner_class.__mro__[1] is HareTortoiseLearner
    assert issubclass(copied.algo_class, DQN)


@pytest.mark.parametrize("cls", [HTDQNConfig, HTSACConfig, with_hare_tortoise(DQNConfig)])
def test_tune_makes_the_config_anew_from_a_dict(cls: type) -> None:
    # As an algorithm does with what Tune hands it.
    config = cls().training(momentum=0.9, reset_interval=5)
    made = config.algo_class.get_default_config().update_from_dict(config.to_dict())
    assert isinstance(made, HareTortoiseConfig)
    assert (made.tortoise_momentum, made.reset_interval) == (0.9, 5)
    assert issubclass(made.learner_class, HareTortoiseLearner)
    made.validate()


def test_ready_algorithms_have_their_own_class() -> None:
    assert HTDQNConfig().algo_class is HTDQN
    assert issubclass(HTSACConfig().algo_class, SACConfig().algo_class)


def test_table_of_settings_is_true() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "rllib.md"
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", page.read_text(encoding="utf-8"), re.MULTILINE)
    config, buffer = HTDQNConfig(), inspect.signature(NStepEpisodeReplayBuffer).parameters
    assert len(rows) == 18 + 6
    for name, value in rows:
        default = buffer[name].default if name in buffer else getattr(config, name)
        assert default == ast.literal_eval(value), name
