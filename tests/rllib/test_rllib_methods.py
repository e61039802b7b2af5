"""The host of methods: which act on which networks of which algorithm, at which step, and after a restore."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import ray.cloudpickle
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.dqn.dqn import DQNConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac.sac import SACConfig
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.learner import Learner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from rllib_agents import DISCRETE, MODULE, SMALL, batch, built, configured, is_sac, same, weights

from ht_ray.methods import METHODS
from ht_ray.rllib import (
    HTDQNConfig,
    HTSACConfig,
    MethodLearner,
    MethodsConfig,
    SettingError,
    SettingWarning,
    with_hare_tortoise,
    with_methods,
)

pytestmark = pytest.mark.filterwarnings("ignore")

FOR_AGENTS = [name for name, cls in METHODS.items() if cls.not_for_agents is None and name not in ("plain", "ema")]
#: So that every method acts within a few steps.
OFTEN = {
    "redo_interval": 3,
    "redo_threshold": 0.7,
    "continual_backprop_maturity": 1,
    "continual_backprop_replacement_rate": 0.1,
    "optimizer_reset_interval": 4,
    "shrink_perturb_interval": 5,
    "shrink_perturb_noise": 0.01,
    "head_reset_interval": 6,
    "l2_coupling": "loss",
    "l2_strength": 1e-2,
    "weight_clipping_factor": 0.5,
    "fire_interval": 5,
    "regrama_interval": 3,
    "regrama_threshold": 0.7,
    "snr_longest": 2,
}


def policy(config: type, **training: Any) -> Any:
    """Return the config of a tiny agent of an algorithm with a policy, whose learner can be called at once."""
    made = with_methods(config)().rl_module(model_config=SMALL).debugging(seed=0)
    if config is PPOConfig:
        made.training(minibatch_size=16)
    return made.env_runners(rollout_fragment_length=8).training(lr=0.01, train_batch_size_per_learner=16, **training)


def played(number: int) -> list[SingleAgentEpisode]:
    """Return two episodes of eight steps, the same each time."""
    draws = np.random.default_rng(number)
    return [
        SingleAgentEpisode(
            observation_space=DISCRETE[0],
            action_space=DISCRETE[1],
            observations=list(draws.normal(size=(9, 4)).astype(np.float32)),
            actions=list(draws.integers(3, size=8)),
            rewards=list(draws.normal(size=8)),
            terminated=True,
            len_lookback_buffer=0,
            extra_model_outputs={
                Columns.ACTION_DIST_INPUTS: list(np.zeros((8, 3), np.float32)),
                Columns.ACTION_LOGP: list(np.full(8, np.log(1 / 3), np.float32)),
            },
        )
        for _ in range(2)
    ]


def train(learner: Any, numbers: range, time: int | None = None) -> Any:
    """Make an optimizer step with each of these batches, and return the last results; RLlib is told `time`."""
    for number in numbers:
        torch.manual_seed(number)  # SAC samples actions
        steps = {"num_env_steps_sampled_lifetime": number + 1 if time is None else time}
        if isinstance(learner.config, (DQNConfig, SACConfig)):
            result = learner.update(batch=batch(number, continuous=is_sac(learner.config)), timesteps=steps)
        else:  # as the learner threads of IMPALA and APPO do it, in this one
            result = Learner.update(learner, episodes=played(number), timesteps=steps)
    return result[MODULE]


def small(name: str, **training: Any) -> Any:
    """Return the config of a tiny agent by its algorithm's name."""
    policies = {"PPO": PPOConfig, "APPO": APPOConfig, "IMPALA": IMPALAConfig}
    if name in policies:
        return policy(policies[name], **training)
    values = {
        "DQN": with_methods(DQNConfig),
        "SAC": with_methods(SACConfig),
        "HTDQN": HTDQNConfig,
        "HTSAC": HTSACConfig,
    }
    return configured(values[name](), **training)


@pytest.fixture
def made() -> Any:
    """Build learners, and shut them down at the end: some have a thread."""
    learners = []

    def make(config: Any) -> Any:
        learners.append(built(config))
        return learners[-1]

    yield make
    for learner in learners:
        learner.shutdown()


@pytest.mark.parametrize("name", ["HTDQN", "HTSAC", "DQN", "SAC", "PPO", "APPO", "IMPALA"])
def test_every_method_acts_and_goes_on_after_a_restore(name: str, made: Any, tmp_path: Path) -> None:
    methods = "+".join(method for method in FOR_AGENTS if method != "hare_tortoise")
    assert len(methods.split("+")) >= 9
    settings = {**OFTEN, "methods": methods} | ({"reset_interval": 4, "momentum": 0.5} if name[:2] == "HT" else {})
    settings |= {"use_kl_loss": False} if name == "PPO" else {}  # RLlib does not save its coefficient
    whole = made(small(name, **settings))
    train(whole, range(8))
    whole.save_to_path(tmp_path / "learner")
    result = train(whole, range(8, 17))
    counts = {metric: result[metric].peek() for metric in ("optimizer_resets", "shrink_perturbs", "head_resets")}
    assert counts == {"optimizer_resets": 4, "shrink_perturbs": 3, "head_resets": 2}
    assert result["recycled_units"].peek() > 0 and result["replaced_units"].peek() > 0
    assert ("tortoise_updates" in result) == (name[:2] == "HT")
    restored = made(small(name, **settings))
    train(restored, range(20, 23), time=0)  # what it was before must not matter
    restored.restore_from_path(tmp_path / "learner")
    again = train(restored, range(8, 17))
    assert same(weights(whole), weights(restored))
    assert [again[metric].peek() for metric in counts] == list(counts.values())
    states = [learner.get_state()["methods"][MODULE] for learner in (whole, restored)]
    assert repr(states[0]) == repr(states[1])


@pytest.mark.parametrize("method", [name for name in FOR_AGENTS if name != "hare_tortoise"])
@pytest.mark.parametrize("name", ["HTDQN", "PPO"])
def test_each_method_changes_training(name: str, method: str, made: Any) -> None:
    switches = {key: OFTEN[key] for key in OFTEN if key.startswith(method)}
    plain, changed = made(small(name)), made(small(name, methods=method, **switches))
    for learner in (plain, changed):
        train(learner, range(6))
    assert not same(weights(plain), weights(changed))


@pytest.mark.parametrize("config", [PPOConfig, IMPALAConfig])
def test_off_is_the_stock_learner(config: type, made: Any) -> None:
    methods = made(policy(config))
    stock = made(config().update_from_dict(policy(config).to_dict() | {"_learner_class": None}))
    assert isinstance(methods, MethodLearner) and not isinstance(stock, MethodLearner)
    for learner in (methods, stock):
        train(learner, range(4))
    assert same(weights(methods), weights(stock))


def test_events_on_a_policy_come_at_the_exact_step(made: Any) -> None:
    off = {"use_kl_loss": False}
    plain = made(policy(PPOConfig, **off))
    shrunk = made(policy(PPOConfig, **off, shrink_perturb_interval=3, shrink_perturb_ratio=0.5, toward="initial"))
    reset = made(policy(PPOConfig, **off, head_reset_interval=3, toward="initial"))
    initial = weights(plain)
    for step in range(1, 4):
        for learner in (plain, shrunk, reset):
            train(learner, range(step - 1, step))
        if step < 3:
            assert same(weights(plain), weights(shrunk)) and same(weights(plain), weights(reset))
    trained, half, head = weights(plain), weights(shrunk), weights(reset)
    for name, _ in plain.module[MODULE].named_parameters():
        assert torch.equal(half[name], trained[name].lerp(initial[name], 0.5)), name
        is_head = name.startswith(("pi.", "vf."))
        assert torch.equal(head[name], (initial if is_head else trained)[name]), name
        assert not torch.equal(trained[name], initial[name])
    # The optimizer forgets what was changed, and nothing else.
    known = {learner: set(learner.get_optimizer(MODULE).state) for learner in (shrunk, reset)}
    assert known[shrunk] == set()
    assert known[reset] == set(reset.module[MODULE].encoder.parameters())


@pytest.mark.parametrize("shared", [False, True])
def test_units_of_a_policy_are_found(shared: bool, made: Any) -> None:
    config = policy(PPOConfig, methods="redo").rl_module(model_config={**SMALL, "vf_share_layers": shared})
    units = made(config)._methods[MODULE].composition.by_name["redo"].units
    heads = [("pi.net.mlp.0", ["pi.net.mlp.2"]), ("vf.net.mlp.0", ["vf.net.mlp.2"])]
    if shared:
        encoders = [("encoder.encoder.net.mlp.0", ["pi.net.mlp.0", "vf.net.mlp.0"])]
    else:
        encoders = [
            ("encoder.actor_encoder.net.mlp.0", ["pi.net.mlp.0"]),
            ("encoder.critic_encoder.net.mlp.0", ["vf.net.mlp.0"]),
        ]
    assert [(one.incoming, [o.layer for o in one.outgoing]) for one in units.hidden] == encoders + heads
    assert not units.skipped


def test_units_of_critics_are_found(made: Any) -> None:
    units = made(small("HTSAC", methods="redo"))._methods[MODULE].composition.by_name["redo"].units
    assert [one.incoming for one in units.hidden] == [
        f"{critic}{layer}" for critic in ("qf", "qf_twin") for layer in ("_encoder.output_layer", ".net.mlp.0")
    ]


def test_distributional_networks_have_units_too(made: Any) -> None:
    learner = made(small("HTDQN", methods="redo", num_atoms=5, v_min=-1.0, v_max=1.0))
    assert len(learner._methods[MODULE].composition.by_name["redo"].units.hidden) == 3


def test_convolutions_have_units_too() -> None:
    # RLlib pads before each of them, and puts the last one's maps last before it flattens them.
    config = HTDQNConfig().rl_module(model_config={**SMALL, "conv_filters": [[4, 4, 2], [6, 4, 2]]})
    images = gymnasium.spaces.Box(0, 1, (16, 16, 3), np.float32)
    learner = config.training(methods="redo").build_learner(spaces={MODULE: (images, DISCRETE[1])})
    units = learner._methods[MODULE].composition.by_name["redo"].units
    first, last, *_ = units.hidden
    assert not units.skipped and [one.layer for one in first.outgoing] == ["encoder.net.0.cnn.4"]
    assert [(one.layer, one.repeats, one.interleaved) for one in last.outgoing] == [
        ("af.net.mlp.0", 16, True),
        ("vf.net.mlp.0", 16, True),
    ]


def test_networks_without_units_are_refused_when_the_learner_is_built() -> None:
    bare = {"fcnet_hiddens": [8], "fcnet_activation": "linear", "head_fcnet_hiddens": []}
    with pytest.raises(SettingError, match="ReDo: Networks has no hidden units that can be recycled"):
        built(policy(PPOConfig, methods="redo").rl_module(model_config=bare))
    recurrent = {**SMALL, "use_lstm": True}
    with pytest.raises(SettingError, match="do not handle recurrent networks"):
        built(policy(PPOConfig, methods="redo").rl_module(model_config=recurrent))
    built(policy(PPOConfig, methods="l2").rl_module(model_config=recurrent))


@pytest.mark.parametrize("left_alone", [False, True])
def test_targets_are_recycled_with_the_online_networks(left_alone: bool, made: Any) -> None:
    settings = {"redo_interval": 2, "redo_threshold": 10.0, "reset_interval": None, "momentum": 0.9}
    learner = made(small("HTDQN", methods="redo", reinitialize_tortoise=not left_alone, **settings))
    train(learner, range(2))
    module = learner.module[MODULE]
    # All units are below this threshold: what they give is 0 until they are trained again.
    assert all((layer.net.mlp[-1].weight == 0).all() for layer in (module.af, module.vf))
    target = (module._target_af.net.mlp[-1].weight == 0).all()
    assert bool(target) != left_alone


@pytest.mark.parametrize("name", ["PPO", "SAC"])
def test_penalties_are_in_gradients_and_loss(name: str, made: Any) -> None:
    seen: list[tuple[float, dict[str, Any]]] = []
    for settings in ({}, {"methods": "l2", "l2_coupling": "loss", "l2_strength": 0.5}):
        learner = made(small(name, **settings))
        named = dict(learner.module[MODULE].named_parameters())
        before = {key: value.detach().clone() for key, value in named.items()}
        loss = train(learner, range(1))["total_loss"].peek()
        seen.append((loss, {key: value.grad for key, value in named.items() if value.grad is not None}))
    acted_on = set(learner._methods[MODULE].networks.parameters())
    acted = [key for key, value in named.items() if value in acted_on]
    assert acted and (len(acted) == len(seen[0][1])) == (name == "PPO")  # SAC's policy is left alone
    for key, gradient in seen[1][1].items():
        torch.testing.assert_close(gradient, seen[0][1][key] + (before[key] if key in acted else 0))  # 2 * 0.5 * w
    penalty = 0.5 * sum(float(before[key].square().sum()) for key in acted)
    assert seen[1][0] - seen[0][0] == pytest.approx(penalty, rel=1e-3)


def test_policy_of_appo_is_reset_and_the_old_one_is_not(made: Any) -> None:
    learner = made(policy(APPOConfig, head_reset_interval=1, toward="initial"))
    networks = learner._methods[MODULE].networks
    assert list(networks) == ["encoder", "pi", "vf"]
    initial = weights(learner)
    train(learner, range(1))
    after = weights(learner)
    for name, value in after.items():
        if name.startswith(("pi.", "vf.")):
            assert torch.equal(value, initial[name]), name
    assert learner._methods[MODULE].composition.tortoise is None


def test_own_methods_work_by_their_path(made: Any) -> None:
    config = policy(PPOConfig, methods="rllib_agents:Traveller+l2", traveller_amount=3)
    assert config.methods == "rllib_agents:Traveller+l2"
    assert policy(PPOConfig, methods="traveller+l2").methods == config.methods  # known by its name now
    travelled = ray.cloudpickle.loads(ray.cloudpickle.dumps(config))
    assert travelled.method_config.settings["traveller"].amount == 3
    learner = made(travelled)
    assert train(learner, range(2))["traveller_counted"].peek() == 6
    shown = learner._methods[MODULE].composition.by_name["traveller"].seen[0]
    assert shown.shape[1:] == (4,)
    with pytest.raises(SettingError, match="Did you mean 'traveller_amount'"):
        config.training(traveller_amoun=2)
    with pytest.raises(SettingError, match="traveller_amount = 0"):
        config.training(traveller_amount=0).validate()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": "redoo"}, "Did you mean 'redo'"),
        ({"methods": "spectral_decoupling"}, "cannot act on an agent"),
        ({"redo_intervall": 5}, "no setting 'redo_intervall'. Did you mean 'redo_interval'"),
        ({"redo_unit": "epochs"}, "no setting 'redo_unit'"),
        ({"momentum": 0.9}, "no setting 'momentum'"),
        ({"methods": "redo", "redo_interval": 0}, "MethodsPPOConfig.redo_interval = 0: accepted is a whole number"),
        ({"redo_threshold": -1.0}, "MethodsPPOConfig.redo_threshold = -1.0"),
        ({"methods": "hare_tortoise"}, r"with_hare_tortoise\(...\), for algorithms of DQN's family"),
        ({"methods": "l2+ema"}, "a tortoise is an algorithm's target network"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        with_methods(PPOConfig)().training(**settings).validate()


def test_what_looks_at_batches_needs_one_learner() -> None:
    config = policy(PPOConfig, methods="redo").learners(num_learners=2)
    with pytest.raises(SettingError, match="'redo' does not work with num_learners = 2"):
        config.validate()
    policy(PPOConfig, methods="l2+upgd").learners(num_learners=2).validate()


def test_hare_and_tortoise_asks_for_a_target_at_once() -> None:
    with pytest.raises(SettingError, match=r"with_hare_tortoise\(PPOConfig\): the learner .* use with_methods"):
        with_hare_tortoise(PPOConfig)
    assert with_methods(HTDQNConfig) is HTDQNConfig
    assert with_methods(PPOConfig) is with_methods(PPOConfig)
    with pytest.raises(SettingError, match=r"with_methods\(3\): accepted is a class of configs"):
        with_methods(3)  # type: ignore[arg-type]


def test_methods_that_are_switched_on_need_no_name() -> None:
    config = with_methods(PPOConfig)()
    assert config.method_config.name == "plain"
    config.training(shrink_perturb_interval=10, methods="l2")
    assert config.method_config.name == "l2+shrink_perturb"
    assert with_methods(PPOConfig)().training(methods="head_reset").method_config.head_reset_interval == 40_000
    assert HTDQNConfig().training(methods="redo+hare_tortoise").method_config.name == "hare_tortoise+redo"
    assert HTDQNConfig().redo_interval == 1000  # what agents have, in steps


def test_old_names_are_understood() -> None:
    with pytest.warns(SettingWarning, match="'reinitialise_target' is called 'reinitialize_tortoise' now"):
        assert HTDQNConfig().training(reinitialise_target=False).reinitialize_tortoise is False
    with pytest.warns(SettingWarning, match="is called 'reinitialize_tortoise' now"):
        assert HTDQNConfig().update_from_dict({"reinitialise_target": False}).reinitialize_tortoise is False


def test_tune_makes_the_config_again_from_a_dict() -> None:
    config = with_methods(PPOConfig)().training(methods="redo", redo_interval=7, head_reset_interval=9)
    made = config.algo_class.get_default_config().update_from_dict(config.to_dict())
    assert isinstance(made, MethodsConfig) and issubclass(made.learner_class, MethodLearner)
    assert made.method_config == config.method_config
    overrides = type(config).overrides(redo_interval=3)
    assert config.copy(copy_frozen=False).update_from_dict(overrides).method_config.redo_interval == 3
    with pytest.raises(SettingError, match="Did you mean 'redo_interval'"):
        made.update_from_dict({"redo_intervals": 3})


def test_indicators_of_a_policy(made: Any) -> None:
    result = train(made(policy(PPOConfig, indicators_interval=2)), range(2))
    assert result["weight_distance"].peek() > 0 and 0 <= result["dormant_ratio"].peek() <= 1


# Whole algorithms.


def algorithm_config(config: Any, **training: Any) -> Any:
    return (
        config.environment("CartPole-v1")
        .env_runners(num_env_runners=0)
        .learners(num_learners=0)
        .debugging(seed=0, log_level="ERROR")
        .training(**training)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("settings", "metric"),
    [
        ({"methods": "redo", "redo_interval": 20, "redo_threshold": 0.8}, "recycled_units"),
        (
            {
                "methods": "continual_backprop",
                "continual_backprop_replacement_rate": 1e-3,
                "continual_backprop_maturity": 50,
            },
            "replaced_units",
        ),
    ],
)
def test_units_are_recycled_on_cartpole_and_a_restore_is_exact(
    settings: dict[str, Any], metric: str, tmp_path: Path
) -> None:
    config = algorithm_config(HTDQNConfig(), momentum=0.99, reset_interval=100, **settings)
    config.training(num_steps_sampled_before_learning_starts=200, training_intensity=32).reporting(
        min_sample_timesteps_per_iteration=500
    )
    algorithm = config.build_algo()
    for _ in range(2):
        result = algorithm.train()["learners"][MODULE]
    print(f"{settings['methods']}: {result[metric]} {metric} in {result['tortoise_updates']} optimizer steps")
    assert result[metric] > 0
    buffer = algorithm.local_replay_buffer
    drawn = [buffer.sample(num_items=32, n_step=1, gamma=0.99, beta=0.4, sample_episodes=True) for _ in range(120)]
    algorithm.save_to_path(tmp_path / "algorithm")
    restored = Algorithm.from_checkpoint(tmp_path / "algorithm")
    learners = [one.learner_group._learner for one in (algorithm, restored)]
    counts = []
    for learner in learners:
        for episodes in drawn:
            learner.update(episodes=episodes, timesteps={"num_env_steps_sampled_lifetime": 10**4})
        counts.append(learner._methods[MODULE].counts())
    assert counts[0] == counts[1]
    assert counts[0][metric] > result[metric]
    assert same(*map(weights, learners))
    print(f"after a restore and 120 more steps: {counts[0][metric]} {metric}, the same weights")
    algorithm.stop()
    restored.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    ("settings", "metric"),
    [
        ({"shrink_perturb_interval": 600, "shrink_perturb_ratio": 0.3}, "shrink_perturbs"),
        ({"head_reset_interval": 600}, "head_resets"),
    ],
)
def test_cartpole_is_solved_with_events(settings: dict[str, Any], metric: str) -> None:
    config = algorithm_config(with_methods(PPOConfig)(), lr=1e-3, num_epochs=6, vf_loss_coeff=0.01, **settings)
    config.rl_module(model_config={"fcnet_hiddens": [64, 64], "vf_share_layers": True})
    config.reporting(metrics_num_episodes_for_smoothing=20)
    algorithm = config.build_algo()
    best = 0.0
    for iteration in range(1, 41):  # noqa: B007
        result = algorithm.train()
        best = max(best, result["env_runners"]["episode_return_mean"])
        events = result["learners"][MODULE][metric]
        if best >= 475 and events >= 2:
            break
    steps = algorithm.learner_group._learner._methods[MODULE].steps
    print(f"{metric}: mean return {best:.0f} after {iteration} iterations, {steps} optimizer steps, {events} events")
    assert events == steps // 600 >= 2
    assert best >= 475
    algorithm.stop()


@pytest.mark.slow
def test_own_methods_travel_to_a_remote_learner() -> None:
    # In a process of its own, whose workers find this folder.
    code = (
        "import ray, rllib_agents\n"
        "from ht_ray.rllib import HTDQNConfig\n"
        "ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False)\n"
        "config = HTDQNConfig().environment('CartPole-v1').env_runners(num_env_runners=0)\n"
        "config.learners(num_learners=1, num_cpus_per_learner=0.5).rl_module(model_config=rllib_agents.SMALL)\n"
        "config.training(methods='rllib_agents:Traveller', traveller_amount=2, reset_interval=10)\n"
        "config.training(num_steps_sampled_before_learning_starts=20, train_batch_size_per_learner=16)\n"
        "algorithm = config.reporting(min_sample_timesteps_per_iteration=40).build_algo()\n"
        "result = algorithm.train()['learners']['default_policy']\n"
        "algorithm.stop()\n"
        "print(result['traveller_counted'], result['tortoise_updates'])\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counted, updates = map(int, done.stdout.split()[-2:])
    assert counted == 2 * updates > 0
