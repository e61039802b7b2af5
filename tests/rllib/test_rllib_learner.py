"""The learner mixins: what happens at which optimizer step, with which weights, and after a restore."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn.dqn import DQNConfig
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.algorithms.sac.sac import SACConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchDDPRLModule
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger
from rllib_agents import (
    CONTINUOUS,
    DISCRETE,
    MODULE,
    batch,
    built,
    by_hand,
    configured,
    pairs,
    same,
    together,
    update,
    weights,
)
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm

from ht_ray.rllib import (
    HareTortoiseLearner,
    HeadResetLearner,
    HTDQNConfig,
    HTSACConfig,
    SettingError,
    ShrinkPerturbConfig,
    ShrinkPerturbLearner,
)
from ht_ray.rllib.indicators import measure_indicators
from ht_ray.rllib.last_value import LAST
from ht_ray.rllib.methods.learner import COMPONENT_METHODS

pytestmark = pytest.mark.filterwarnings("ignore:Tortoise. the hare is reset every")
EVERYTHING = {
    "momentum": 0.8,
    "reset_interval": 3,
    "shrink_perturb_interval": 4,
    "shrink_perturb_ratio": 0.5,
    "shrink_perturb_noise": 0.01,
    "head_reset_interval": 6,
}


def counted(learner: Any, module: str = MODULE) -> dict[str, int]:
    """Return what the learner's state holds of its steps and of the tortoise."""
    state = learner.get_state()[COMPONENT_METHODS][module]
    tortoise = state["methods"]["hare_tortoise"]
    return {"steps": state["steps"], "updates": tortoise["updates"], "resets": tortoise["resets"]}


@pytest.mark.parametrize(("own", "stock"), [(HTDQNConfig, DQNConfig), (HTSACConfig, SACConfig)])
def test_resets_at_exactly_the_right_steps(own: type, stock: type) -> None:
    learner = built(configured(own(), momentum=0.9, reset_interval=3))
    reference = by_hand(stock(), momentum=0.9, interval=3)
    assert same(weights(learner), weights(reference))
    for step in range(1, 8):
        update(learner, range(step - 1, step))
        update(reference, range(step - 1, step))
        assert together(learner) == (step % 3 == 0), step
        assert same(weights(learner), weights(reference)), step
        assert all(online.data_ptr() != target.data_ptr() for online, target in pairs(learner))
    assert counted(learner) == {"steps": 7, "updates": 7, "resets": 2}
    # Kept at the resets, to the last moment of Adam.
    assert repr(learner._get_optimizer_state()) == repr(reference._get_optimizer_state())


@pytest.mark.parametrize(("own", "stock"), [(HTDQNConfig, DQNConfig), (HTSACConfig, SACConfig)])
def test_minibatches_and_epochs_are_steps(own: type, stock: type) -> None:
    learner = built(configured(own(), momentum=0.9, reset_interval=3))
    reference = by_hand(stock(), momentum=0.9, interval=3)
    for one in (learner, reference):  # 2 epochs of 4 minibatches, twice
        update(one, range(2), size=32, minibatch_size=8, num_epochs=2, shuffle_batch_per_epoch=False)
    assert same(weights(learner), weights(reference))
    assert counted(learner) == {"steps": 16, "updates": 16, "resets": 5}


def test_critics_of_sac_have_targets_and_the_policy_has_none() -> None:
    learner = built(configured(HTSACConfig(), momentum=0.5, reset_interval=2, head_reset_interval=2))
    module = learner.module[MODULE]
    assert len(module.get_target_network_pairs()) == 4
    update(learner, range(1))
    policy = {name: value.clone() for name, value in module.pi.state_dict().items()}
    rate = learner.get_optimizer(MODULE, "policy").param_groups[0]["lr"] * 1.01
    update(learner, range(1, 2))
    assert together(learner)
    assert all((value - policy[name]).abs().max() <= rate for name, value in module.pi.state_dict().items())
    # Head Reset has cleared the heads' optimizer state, and nobody else's.
    critic, policy_optimizer = learner.get_optimizer(MODULE, "qf"), learner.get_optimizer(MODULE, "policy")
    assert set(critic.state) == set(module.qf_encoder.parameters())
    assert set(policy_optimizer.state) == {*module.pi_encoder.parameters(), *module.pi.parameters()}


def test_policy_and_temperature_of_sac_are_left_alone() -> None:
    always = {"reset_interval": 1, "shrink_perturb_interval": 1, "shrink_perturb_noise": 0.1, "head_reset_interval": 1}
    learner, stock = built(configured(HTSACConfig(), optimizer_state="clear", **always)), built(configured(SACConfig()))
    for one in (learner, stock):
        update(one, range(1))
    before = weights(stock)
    changed = {name.split(".")[0] for name, value in weights(learner).items() if not torch.equal(value, before[name])}
    assert changed == {f"{net}{part}" for net in ("qf", "qf_twin", "target_qf", "target_qf_twin")
                       for part in ("", "_encoder")}  # fmt: skip
    assert torch.equal(learner.curr_log_alpha[MODULE], stock.curr_log_alpha[MODULE])
    for name in ("policy", "alpha"):
        states = [one.get_optimizer(MODULE, name).state_dict()["state"] for one in (learner, stock)]
        assert states[0] and repr(states[0]) == repr(states[1])


def test_sac_without_a_twin() -> None:
    learner = built(configured(HTSACConfig(), twin_q=False, reset_interval=2, head_reset_interval=2))
    assert len(learner.module[MODULE].get_target_network_pairs()) == 2
    update(learner, range(2))
    assert together(learner)


@pytest.mark.parametrize(("optimizer_state", "kept"), [("keep", True), ("clear", False)])
@pytest.mark.parametrize("own", [HTDQNConfig, HTSACConfig])
def test_optimizer_state_at_a_reset(own: type, optimizer_state: str, kept: bool) -> None:
    learner = built(configured(own(), reset_interval=2, optimizer_state=optimizer_state))
    update(learner, range(2))
    online = [p for net, _ in learner.module[MODULE].get_target_network_pairs() for p in net.parameters()]
    remembered = {p for _, optimizer in learner.get_optimizers_for_module(MODULE) for p in optimizer.state}
    assert all((p in remembered) == kept for p in online)
    if own is HTSACConfig:
        assert remembered.issuperset(learner.module[MODULE].pi.parameters())


def test_a_schedule_a_warm_up_and_resets_of_parts() -> None:
    options = {"momentum_warmup": 1.0, "reset_schedule": (2, 1), "reset_only": ("vf", "af")}
    learner = built(configured(HTDQNConfig(), momentum=0.9, reset_interval=9, **options))
    update(learner, range(1))
    assert together(learner)  # the first momentum is 0
    update(learner, range(1, 2))
    assert counted(learner)["resets"] == 1
    assert not together(learner)  # the encoder was left
    update(learner, range(2, 4))
    assert counted(learner)["resets"] == 3


def test_off_is_the_stock_learner() -> None:
    stock = built(configured(DQNConfig(), target_network_update_freq=0, tau=1.0))
    off = built(configured(HTDQNConfig(), momentum=0.0, reset_interval=None))
    for one in (stock, off):
        update(one, range(10))
    assert same(weights(stock), weights(off))  # exactly, as both copy


def test_average_is_the_stock_one_up_to_rounding() -> None:
    stock = built(configured(DQNConfig(), target_network_update_freq=0, tau=0.1))
    off = built(configured(HTDQNConfig(), tau=0.1, reset_interval=None))
    for one in (stock, off):
        update(one, range(10))
    for name, value in weights(stock).items():
        torch.testing.assert_close(weights(off)[name], value, rtol=1e-4, atol=1e-6)


def composed(*bases: type) -> type:
    return type("Learner", (*bases, DQNTorchLearner), {})


def test_order_of_inheritance_makes_no_difference() -> None:
    orders = [
        composed(HareTortoiseLearner, ShrinkPerturbLearner, HeadResetLearner),
        composed(HeadResetLearner, ShrinkPerturbLearner, HareTortoiseLearner),
    ]
    seen = []
    for cls in orders:
        learner = built(configured(HTDQNConfig(), learner_class=cls, **EVERYTHING))
        assert type(learner) is cls
        update(learner, range(11))
        assert not together(learner)
        update(learner, range(11, 12))  # all are due: the reset first, then both networks alike
        assert together(learner)
        seen.append(weights(learner))
    assert same(*seen)


def test_mixins_work_alone() -> None:
    # RLlib's own update of the target network goes on where Hare & Tortoise is not there to do it.
    class Config(ShrinkPerturbConfig, DQNConfig):
        pass

    config = configured(Config(), shrink_perturb_interval=3, toward="initial", shrink_perturb_ratio=1.0)
    learner = built(config.training(target_network_update_freq=0, tau=0.005))
    assert isinstance(learner, ShrinkPerturbLearner) and not isinstance(learner, HareTortoiseLearner)
    initial = weights(learner)
    update(learner, range(3))
    for name, value in weights(learner).items():
        torch.testing.assert_close(value, initial[name])  # the target moves once more, from where it is to the same
    result = learner.update(batch=batch(3), timesteps={"num_env_steps_sampled_lifetime": 4})[MODULE]
    assert "tortoise_updates" not in result and result["num_target_updates"].peek() == 1
    assert learner.get_state()[COMPONENT_METHODS][MODULE]["methods"]["target"]["updates"] == 0


def test_target_can_be_left_alone() -> None:
    learner = built(configured(HTDQNConfig(), head_reset_interval=2, reset_interval=None, reinitialize_tortoise=False))
    update(learner, range(1))
    target = learner.module[MODULE]._target_af.state_dict()["net.mlp.0.weight"].clone()
    online = learner.module[MODULE].af.state_dict()["net.mlp.0.weight"].clone()
    update(learner, range(1, 2))
    assert (learner.module[MODULE].af.state_dict()["net.mlp.0.weight"] - online).abs().max() > 0.05
    assert (learner.module[MODULE]._target_af.state_dict()["net.mlp.0.weight"] - target).abs().max() < 0.01


def test_named_parts_are_reset_and_nothing_else() -> None:
    settings = {"reset_interval": None, "head_reset_interval": 1, "toward": "initial", "momentum": 0.0}
    learner = built(configured(HTDQNConfig(), reset_parts=("vf", "encoder.net"), **settings))
    before = weights(learner)
    update(learner, range(1))
    for name, value in learner.module[MODULE].named_parameters():
        reset = name.startswith(("vf.", "encoder.", "_target_vf.", "_target_encoder."))
        assert torch.equal(value, before[name]) == reset, name


def test_unknown_part_is_refused_when_the_learner_is_built() -> None:
    with pytest.raises(SettingError, match="Did you mean 'vf'"):
        built(configured(HTDQNConfig(), head_reset_interval=5, reset_parts=("vff",)))


def test_fresh_weights_differ_each_time_and_touch_no_generator() -> None:
    learner = built(configured(HTDQNConfig(), momentum=0.5, head_reset_interval=1, reset_interval=None))
    seen = []
    for number in range(2):
        one = batch(number)
        states = torch.get_rng_state(), random.getstate()
        learner.update(batch=one)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        seen.append(learner.module[MODULE].vf.state_dict()["net.mlp.0.weight"].clone())
        # Drawn apart: one generator for each part would give both heads the same first layer.
        assert not torch.equal(seen[-1], learner.module[MODULE].af.state_dict()["net.mlp.0.weight"])
    assert not torch.equal(*seen)


@pytest.mark.parametrize("own", [HTDQNConfig, HTSACConfig])
@pytest.mark.parametrize("toward", ["initial", "fresh"])
def test_restored_learner_goes_on_as_if_nothing_had_been(own: type, toward: str, tmp_path: Path) -> None:
    settings = {**EVERYTHING, "toward": toward, "indicators_interval": 2}
    whole = built(configured(own(), seed=1, **settings))
    update(whole, range(5))
    whole.save_to_path(tmp_path / "learner")
    update(whole, range(5, 13))
    restored = built(configured(own(), seed=1, **settings))
    update(restored, range(20, 22))  # what it was before must not matter
    restored.restore_from_path(tmp_path / "learner")
    update(restored, range(5, 13))
    assert same(weights(whole), weights(restored))
    assert counted(whole) == counted(restored)
    assert counted(whole)["steps"] == 13
    states = [one.get_state()[COMPONENT_METHODS][MODULE] for one in (whole, restored)]
    for name, value in states[0]["initial"].items():
        assert np.array_equal(value, states[1]["initial"][name])


def test_state_goes_back_whole() -> None:
    # RLlib passes over the weights of a state with fewer updates than its own.
    learner = built(configured(HTDQNConfig(), **EVERYTHING))
    update(learner, range(5))
    state = copy.deepcopy(learner.get_state())
    update(learner, range(5, 13))
    expected = weights(learner)
    learner.set_state(state)
    update(learner, range(5, 13))
    assert same(weights(learner), expected)


def test_weights_for_env_runners_carry_no_state_of_the_mixins() -> None:
    learner = built(configured(HTDQNConfig(), shrink_perturb_interval=5, toward="initial"))
    assert COMPONENT_METHODS not in learner.get_state(components="rl_module")
    assert COMPONENT_METHODS not in learner.get_state(not_components=COMPONENT_METHODS)


def test_indicators_are_measured_when_due_and_change_nothing() -> None:
    plain = built(configured(HTDQNConfig(), reset_interval=3, momentum=0.5))
    measured = built(configured(HTDQNConfig(), reset_interval=3, momentum=0.5, indicators_interval=2))
    for number in range(4):
        update(plain, range(number, number + 1))
        torch.manual_seed(number)
        result = measured.update(batch=batch(number))[MODULE]
        assert ("weight_distance" in result) == (number >= 1)  # then the last value stays
        assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(number).get_state())
    assert same(weights(plain), weights(measured))
    values = {name: result[name].peek() for name in ("weight_distance", "srank", "dormant_ratio", "tortoise_resets")}
    assert values["weight_distance"] > 0
    assert 1 <= values["srank"] <= 8
    assert 0 <= values["dormant_ratio"] <= 1
    assert values["tortoise_resets"] == 1


def test_indicators_of_sac_and_counts_of_all_methods() -> None:
    learner = built(configured(HTSACConfig(), indicators_interval=1, **EVERYTHING))
    for number in range(12):
        result = learner.update(batch=batch(number, continuous=True))[MODULE]
    counts = [result[name].peek() for name in ("tortoise_updates", "tortoise_resets", "shrink_perturbs", "head_resets")]
    assert counts == [12, 4, 3, 2]
    assert result["weight_magnitude"].peek() > 0


def test_distance_is_logged_before_the_reset() -> None:
    learner = built(configured(HTDQNConfig(), momentum=0.9, reset_interval=100))
    update(learner, range(99))
    result = learner.update(batch=batch(0))[MODULE]
    assert result["hare_tortoise_distance"].peek() > 0
    assert together(learner)


def test_what_is_measured_at_an_interval_keeps_its_last_value() -> None:
    learner = built(configured(HTDQNConfig(), momentum=0.9, reset_interval=None, indicators_interval=70))
    # As an algorithm aggregates updates and reduces iterations.
    root = MetricsLogger(root=True)
    seen: dict[str, list[Any]] = {"hare_tortoise_distance": [], "weight_distance": []}
    truth: dict[str, list[Any]] = {name: [] for name in seen}
    measured = {}
    for iteration in range(8):
        for number in range(40 * iteration, 40 * (iteration + 1)):
            torch.manual_seed(number)
            root.aggregate([learner.update(batch=batch(number))])
            step = number + 1
            if step == 1 or step % 100 == 0:
                squares = sum((one - two).detach().square().sum() for one, two in pairs(learner))
                measured["hare_tortoise_distance"] = float(squares.sqrt())
            if step % 70 == 0:
                held = learner._methods[MODULE]
                now = measure_indicators(held.online, held.samples.inputs(), held.initial)
                measured["weight_distance"] = now["weight_distance"]
        result = root.reduce(compile=True)[MODULE]
        for name in seen:
            seen[name].append(result.get(name))
            truth[name].append(measured.get(name))
    assert None not in truth["hare_tortoise_distance"] and truth["weight_distance"][0] is None
    for name, values in seen.items():
        assert [None if value is None else pytest.approx(value, rel=1e-4) for value in truth[name]] == values, name
    restored = MetricsLogger(root=True)
    restored.set_state(root.get_state())
    again = built(configured(HTDQNConfig(), momentum=0.9, reset_interval=None))
    again.set_state(learner.get_state())
    restored.aggregate([again.update(batch=batch(0))])
    assert restored.reduce(compile=True)[MODULE]["hare_tortoise_distance"] == seen["hare_tortoise_distance"][-1]


def test_several_learners_report_their_mean_and_a_checkpoint_of_before_can_be_continued() -> None:
    def learner(value: float) -> Any:
        logger = MetricsLogger(root=False)
        logger.log_value("distance", value, reduce=LAST)
        return logger.reduce()

    root = MetricsLogger(root=True)
    root.aggregate([learner(1.0), learner(2.0)])
    root.aggregate([learner(3.0), learner(5.0)])
    assert root.reduce(compile=True)["distance"] == root.reduce(compile=True)["distance"] == 4
    before = MetricsLogger(root=True)  # which held what was logged with window=1
    old = MetricsLogger(root=False)
    old.log_value("distance", 7.0, window=1)
    before.aggregate([old.reduce()])
    before.reduce()
    root = MetricsLogger(root=True)
    root.set_state(before.get_state())
    root.aggregate([learner(2.0)])
    assert root.reduce(compile=True)["distance"] == 2


def test_modules_are_counted_apart() -> None:
    config = (
        configured(HTDQNConfig(), momentum=0.9, reset_interval=2)
        .multi_agent(
            policies={"a", "b"},
            policy_mapping_fn=lambda agent, episode, **kwargs: "a",
            algorithm_config_overrides_per_module={"b": HTDQNConfig.overrides(reset_interval=3)},
        )
        .environment(observation_space=DISCRETE[0], action_space=DISCRETE[1])
    )
    config.validate()
    learner = config.build_learner(spaces={"a": DISCRETE, "b": DISCRETE})
    for number in range(3):
        learner.update(batch=batch(number, modules=("a", "b")))
    learner.update(batch=batch(3, modules=("a",)))
    assert counted(learner, "a") == {"steps": 4, "updates": 4, "resets": 2}
    assert counted(learner, "b") == {"steps": 3, "updates": 3, "resets": 1}


def test_rllib_never_updates_the_targets_itself() -> None:
    config = (
        configured(HTDQNConfig(), momentum=0.9, reset_interval=None)
        .multi_agent(
            policies={"a", "b"},
            policy_mapping_fn=lambda agent, episode, **kwargs: "a",
            algorithm_config_overrides_per_module={"b": HTDQNConfig.overrides(target_network_update_freq=0)},
        )
        .environment(observation_space=DISCRETE[0], action_space=DISCRETE[1])
    )
    config.validate()
    learner = config.build_learner(spaces={"a": DISCRETE, "b": DISCRETE})
    spec = RLModuleSpec.from_module(learner.module["a"].unwrapped())
    spec.inference_only = False
    learner.add_module(module_id="c", module_spec=spec)
    modules = ("a", "b", "c")
    result = learner.update(batch=batch(0, modules=modules), timesteps={"num_env_steps_sampled_lifetime": 10**6})
    for module in modules:
        assert "num_target_updates" not in result[module]
        assert result[module]["tortoise_updates"].peek() == 1


def test_a_module_that_is_added_has_its_settings_checked() -> None:
    learner = built(configured(HTDQNConfig(), momentum=0.9))
    spec = RLModuleSpec.from_module(learner.module[MODULE].unwrapped())
    for overrides, message in (
        ({"tau": 0.5}, "momentum = 0.9 and tau = 0.5"),
        ({"act_with_tortoise": True}, "act_with_tortoise = True for one module"),
        ({"indicators_interval": 0}, "indicators_interval = 0"),
    ):
        with pytest.raises(SettingError, match=message):
            learner.add_module(module_id="c", module_spec=spec, config_overrides=overrides)
        assert "c" not in learner.module


def test_a_step_that_a_scaler_passes_over_is_none() -> None:
    class Scaler(torch.amp.GradScaler):
        """Finds infinite gradients at the second and the third step."""

        calls = 0

        def __init__(self) -> None:
            super().__init__("cpu", init_scale=8.0)

        def scale(self, outputs: Any) -> Any:
            self.calls += 1
            return super().scale(outputs) * (float("inf") if self.calls in (2, 3) else 1.0)

    config = configured(HTDQNConfig(), momentum=0.9, reset_interval=3).framework(torch_skip_nan_gradients=True)
    learner = built(config.experimental(_torch_grad_scaler_class=Scaler))
    steps = 0

    def count(*_: Any) -> None:
        nonlocal steps
        steps += 1

    for _, optimizer in learner.get_optimizers_for_module(MODULE):
        optimizer.register_step_post_hook(count)
    update(learner, range(6))
    assert steps == 4
    assert counted(learner) == {"steps": 4, "updates": 4, "resets": 1}


def test_fresh_weights_are_those_of_every_learner() -> None:
    # As with several remote learners: each draws for itself, from the same seed and counter.
    learners = [built(configured(HTDQNConfig(), head_reset_interval=2)) for _ in range(2)]
    for number, learner in enumerate(learners):
        update(learner, range(1))
        torch.manual_seed(number + 50)
        random.seed(number + 50)
        learner.update(batch=batch(1))
    assert same(*map(weights, learners))


def test_networks_wrapped_for_several_learners(tmp_path: Path) -> None:
    # What RLlib does with num_learners=2, in one process.
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        settings = {"momentum": 0.9, "reset_interval": 2, "head_reset_interval": 3, "indicators_interval": 2}
        alone = built(configured(HTDQNConfig(), **settings))
        wrapped = built(configured(HTDQNConfig(), **settings).learners(num_learners=2))
        assert isinstance(wrapped.module[MODULE], TorchDDPRLModule)
        for learner in (alone, wrapped):
            update(learner, range(7))
        assert same(weights(alone), {name.removeprefix("module."): w for name, w in weights(wrapped).items()})
        assert counted(wrapped)["resets"] == 3
    finally:
        torch.distributed.destroy_process_group()


def test_mixins_after_the_learner_are_refused() -> None:
    with pytest.raises(TypeError, match="put the mixins before the learner"):
        type("Wrong", (DQNTorchLearner, HareTortoiseLearner), {})


def test_config_without_the_settings_is_refused() -> None:
    config = configured(DQNConfig(), learner_class=composed(HareTortoiseLearner))
    with pytest.raises(SettingError, match=r"with_hare_tortoise\(DQNConfig\)"):
        built(config)


def test_discrete_sac_is_measured_too() -> None:
    config = configured(HTSACConfig(), indicators_interval=1, reset_interval=2)
    config.validate()
    learner = config.build_learner(spaces={MODULE: (CONTINUOUS[0], DISCRETE[1])})
    for number in range(2):
        result = learner.update(batch=batch(number))[MODULE]
    assert together(learner)
    assert result["weight_distance"].peek() > 0


@pytest.mark.parametrize("own", [HTDQNConfig, HTSACConfig])
def test_buffers_of_the_networks(own: type) -> None:
    """Masks are the online network's, also past a reset; vectors are the target's own; what is named is averaged."""
    learner = built(configured(own(), momentum=0.5, reset_interval=3))
    networks = learner.module[MODULE].get_target_network_pairs()
    layers = [
        [next(part for part in network.modules() if isinstance(part, torch.nn.Linear)) for network in both]
        for both in networks
    ]
    (pruned, pruned_target), *_, (normed, normed_target) = layers
    for layer in (pruned, pruned_target):
        prune.identity(layer, "weight")
    torch.manual_seed(0)
    for layer in (normed, normed_target):
        spectral_norm(layer)
    for network in networks[0]:
        network.register_buffer("codebook", torch.zeros(2))
    learner.config = learner.config.copy(copy_frozen=False).training(average_buffers=("*codebook",))
    for step in range(1, 5):
        if step == 2:
            prune.l1_unstructured(pruned, "weight", amount=0.5)
            networks[0][0].codebook.fill_(4.0)
        update(learner, range(step - 1, step))
        assert torch.equal(pruned.weight_mask, pruned_target.weight_mask)
    assert (pruned.weight_mask == 0).float().mean() == 0.5
    assert networks[0][0].codebook.tolist() == networks[0][1].codebook.tolist() == [3.0, 3.0]
    for layer in (normed, normed_target):
        assert torch.linalg.matrix_norm(layer.eval().weight.detach(), 2).item() == pytest.approx(1, abs=0.02)


def test_buffers_that_are_not_there_are_refused() -> None:
    with pytest.raises(SettingError, match=r"HTDQNConfig.average_buffers = 'codebook': accepted is a tuple"):
        HTDQNConfig().training(average_buffers="codebook").validate()
    with pytest.raises(SettingError, match=r"'\*.codebook' matches no floating-point buffer"):
        built(configured(HTDQNConfig(), average_buffers=("*.codebook",)))
