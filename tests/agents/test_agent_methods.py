"""Methods in agents: each acts and is resumed exactly in DrQ and BBF, units are recycled, what cannot be is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ht_ray.agents import base
from ht_ray.agents.base import Agent
from ht_ray.agents.base_config import AgentConfig
from ht_ray.agents.bbf.config import BBFConfig
from ht_ray.agents.drq.config import DrQConfig
from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.methods import method_flags
from ht_ray.agents.networks.bbf_network import BBFNetwork, BBFNetworkConfig
from ht_ray.agents.networks.q_network import NetworkConfig, QNetwork
from ht_ray.agents.registry import agent_from_dict, make_agent
from ht_ray.agents.replay import Batch
from ht_ray.agents.training.train import TrainingRun, main
from ht_ray.errors import SettingError
from ht_ray.mechanisms import HiddenUnits, find_units
from ht_ray.methods import L2, ContinualBackprop, ReDo

SHAPE, ACTIONS, STEPS = (2, 36, 36), 3, 2
AGENTS: dict[str, AgentConfig] = {
    "drq": DrQConfig(hidden=8, momentum=0.9, reset_interval=5),
    "bbf": BBFConfig(
        width=0.25, hidden=8, bins=11, spr_steps=STEPS, reset_interval=5, momentum=0.9, restart_interval=None
    ),
}
#: Settings with which each method acts within a few updates.
METHODS: dict[str, dict[str, Any]] = {
    "l2": {"l2_strength": 1.0},
    "regenerative": {"regenerative_strength": 0.1},
    "upgd": {},
    "weight_clipping": {"weight_clipping_factor": 0.1},
    "optimizer_reset": {"optimizer_reset_interval": 2},
    "regrama": {"regrama_interval": 3, "regrama_threshold": 0.7},
    "fire": {"fire_interval": 3},
    "parseval": {"parseval_strength": 0.1},
    "spectral_regularization": {"spectral_regularization_strength": 0.1},
    "wasserstein": {"wasserstein_strength": 0.1},
    "normalize_and_project": {},
    "redo": {"redo_interval": 3, "redo_threshold": 0.9, "redo_batches": 2},
    "continual_backprop": {"continual_backprop_replacement_rate": 0.1, "continual_backprop_maturity": 2},
}


def agent(kind: str, methods: str = "", seed: int = 0, **settings: Any) -> Agent:
    config = replace(AGENTS[kind], methods=methods, **settings)
    return make_agent(config, shape=SHAPE, num_actions=ACTIONS, seed=seed)


def with_method(kind: str, name: str, **settings: Any) -> Agent:
    return agent(kind, name, method_settings=METHODS[name], **settings)


def batch(number: int, size: int = 6) -> Batch:
    draws = torch.Generator().manual_seed(number)
    frames = torch.randint(256, (2 + STEPS, size, *SHAPE), generator=draws, dtype=torch.uint8)
    actions = torch.randint(ACTIONS, (size, STEPS), generator=draws)
    return Batch(
        observations=frames[0],
        actions=actions[:, 0],
        returns=torch.randn(size, generator=draws),
        next_observations=frames[1],
        discounts=torch.full((size,), 0.9),
        indices=torch.arange(size),
        weights=torch.ones(size),
        future_observations=frames[2:].transpose(0, 1).contiguous(),
        future_actions=actions,
        future_mask=torch.ones(size, STEPS),
    )


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("name", METHODS)
def test_it_acts_and_goes_on_exactly(kind: str, name: str) -> None:
    plain, learner = agent(kind), with_method(kind, name)
    for number in range(5):
        plain.update(batch(number))
        learner.update(batch(number))
    assert not same(plain.network, learner.network)
    # In the middle, into an agent that has seen other batches.
    again = with_method(kind, name)
    again.update(batch(50))
    again.load_state_dict(learner.state_dict())
    for number in range(5, 11):
        one, other = learner.update(batch(number)), again.update(batch(number))
        assert torch.equal(one["loss"], other["loss"])
    assert learner.target is not None and again.target is not None
    assert same(learner.network, again.network) and same(learner.target, again.target)
    assert learner.method.state_dict().keys() == {"hare_tortoise", name} | ({"restart"} if kind == "bbf" else set())


@pytest.mark.parametrize("kind", AGENTS)
def test_several_methods_act_in_their_order(kind: str) -> None:
    learner = agent(kind, "redo+l2+weight_clipping", method_settings=METHODS["redo"])
    own = ["restart"] if kind == "bbf" else []
    assert learner.method.name == "+".join(["hare_tortoise", *own, "redo", "l2", "weight_clipping"])
    for number in range(3):
        learner.update(batch(number))
    redo = learner.method.by_name["redo"]
    assert isinstance(redo, ReDo) and redo.applications == 1 and redo.recycled > 0


Recycled = list[tuple[HiddenUnits, torch.Tensor]]


def are_read_with_zeros(done: Recycled, module: torch.nn.Module) -> bool:
    """Return whether the units are read with weights of zero, except by units that were recycled with them."""
    new = {hidden.incoming: units for hidden, units in done}
    found = []
    for hidden, units in done:
        for outgoing in hidden.outgoing:
            weight = module.get_submodule(outgoing.layer).get_parameter("weight").detach().clone()
            weight[new.get(outgoing.layer, torch.tensor([], dtype=torch.int64))] = 0
            found.append(not weight[:, outgoing.columns()[:, units].flatten()].any())
    return all(found)


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("name", ["redo", "continual_backprop"])
def test_units_are_recycled(kind: str, name: str, both: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, read with weights of zero, in the target too, and forgotten by the optimiser."""
    learner = with_method(kind, name, reset_interval=None, reinitialize_tortoise=both)
    method = learner.method.by_name[name]
    assert isinstance(method, (ReDo, ContinualBackprop))
    done: Recycled = []
    module = sys.modules["ht_ray.methods.recycling" if isinstance(method, ReDo) else type(method).__module__]
    recycle = module.recycle

    def noting(network: Any, hidden: HiddenUnits, units: torch.Tensor, *rest: Any) -> None:
        where = units.nonzero().flatten() if units.dtype == torch.bool else units
        done.append((hidden, where))
        recycle(network, hidden, units, *rest)

    monkeypatch.setattr(module, "recycle", noting)
    for number in range(6):
        learner.update(batch(number))
        if done:
            break
    count = sum(len(units) for _, units in done)
    assert count > 0 and count == (method.recycled if isinstance(method, ReDo) else method.replacements)
    assert learner.target is not None
    assert are_read_with_zeros(done, learner.network)
    assert are_read_with_zeros(done, learner.target) == both
    for hidden, units in done:
        incoming = learner.network.get_submodule(hidden.incoming).get_parameter("weight")
        assert incoming[units].any()
        moments = learner.optimizer.state[incoming]
        assert not moments["exp_avg"][units].any() and not moments["exp_avg_sq"][units].any()
        kept = [unit for unit in range(hidden.units) if unit not in set(units.tolist())]
        assert not kept or moments["exp_avg_sq"][kept].any()


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("dueling", [True, False])
def test_units_of_the_q_network(dueling: bool, padding: Any) -> None:
    found = find_units(QNetwork(3, config=NetworkConfig(hidden=16, dueling=dueling, padding=padding)))
    heads = ["head.advantages", "head.value"] if dueling else ["head.advantages"]
    assert [hidden.units for hidden in found.hidden] == [32, 64, 64, 16] and not found.skipped
    assert [one.layer for one in found.hidden[2].outgoing] == ["head.hidden"]
    assert [one.layer for one in found.hidden[3].outgoing] == heads


@pytest.mark.parametrize("spr", [True, False])
def test_units_of_the_bbf_network(spr: bool) -> None:
    network = BBFNetwork(3, bins=5, config=BBFNetworkConfig(width=0.25, hidden=16, self_prediction=spr))
    *blocks, head = find_units(network).hidden
    assert [hidden.units for hidden in blocks] == [4, 4, 8, 8, 8, 8]
    assert all(hidden.incoming.endswith(".first") and hidden.outgoing[0].layer.endswith(".second") for hidden in blocks)
    readers = ["head.advantages", "head.value", "head.predictor"] if spr else ["head.advantages", "head.value"]
    assert (head.units, head.incoming, [one.layer for one in head.outgoing]) == (16, "head.projection", readers)
    # What is read from a unit is read with these weights only.
    if spr:
        inputs, actions = torch.rand(2, 4, 84, 84), torch.zeros(2, 1, dtype=torch.int64)
        with torch.no_grad():
            network.head.projection.bias[3] = 5  # it is active
            before = network.predict(inputs, actions)
            for columns in head.outgoing:
                network.get_submodule(columns.layer).get_parameter("weight")[:, 3] = 0
            emptied = network.predict(inputs, actions)
            network.head.projection.weight[3] += 1
            after = network.predict(inputs, actions)
        assert not torch.equal(before[0], emptied[0]) and not torch.equal(before[1], emptied[1])
        assert torch.equal(emptied[0], after[0]) and torch.equal(emptied[1], after[1])


@pytest.mark.parametrize(
    ("methods", "settings", "said"),
    [
        ("redoo", {}, "Did you mean 'redo'"),
        ("hare_tortoise", {}, "its target network: set momentum and reset_interval"),
        ("ema+redo", {}, "its target network: set momentum and reset_interval"),
        ("shrink_perturb", {}, "settings of its own for 'shrink_perturb': set shrink_perturb_interval"),
        ("head_reset", {}, "set head_reset_interval"),
        ("spectral_decoupling", {}, "cannot act on an agent: it is a penalty on the logits of classes"),
        *((name, {}, f"method '{name}' cannot act on an agent: ")
          for name in ("self_distillation", "plasticity_injection", "augment", "crelu", "layer_norm", "adam", "aid",
                       "deep_fourier", "muon", "weight_consolidation")),
        ("redo", {"redo_interval": 0}, "redo_interval = 0: accepted is a whole number"),
        ("redo", {"redo_intervall": 5}, "Did you mean 'redo_interval'"),
        ("redo", {"l2_strength": 0.1}, "'l2_strength' is no setting of these methods: accepted are redo_threshold"),
        ("", {"l2_strength": 0.1}, "'l2_strength' is no setting of these methods: accepted are none"),
        ("redo", {"redo_unit": "epochs"}, "redo_unit = 'epochs': an agent has none: accepted is 'steps'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(methods: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said) as caught:
        DrQConfig(methods=methods, method_settings=settings)
    assert f"DrQConfig.methods = {methods!r}: " in str(caught.value)
    assert (caught.value.owner, caught.value.field, caught.value.value) == ("DrQConfig", "methods", methods)


def test_bbf_points_to_its_restart() -> None:
    with pytest.raises(SettingError, match="a restart does both: set restart_interval"):
        BBFConfig(methods="head_reset")


def test_networks_without_units_are_refused() -> None:
    with pytest.raises(SettingError, match="no hidden units that can be recycled"):
        agent("drq", "redo", layer_norm=True)


def test_intervals_count_gradient_steps_and_settings_may_be_written_with_the_names() -> None:
    config = DrQConfig(methods="redo:redo_threshold=0.1", method_settings={"redo_interval": 500}).method_config
    assert config is not None and (config.redo_threshold, config.redo_interval, config.redo_unit) == (0.1, 500, "steps")
    assert DrQConfig(methods="redo").method_config.redo_interval == 1000  # type: ignore[union-attr]
    assert DrQConfig(methods="plain") == DrQConfig() and DrQConfig().method_config is None
    spared = DrQConfig(methods="redo", reinitialize_tortoise=False).method_config
    assert spared is not None and not spared.reinitialize_tortoise


@pytest.mark.parametrize("kind", AGENTS)
def test_settings_are_plain_data(kind: str) -> None:
    given = {"redo_interval": 500, "continual_backprop_replacement_rate": 1e-5}
    config = replace(AGENTS[kind], methods="redo+continual_backprop+l2", method_settings=given)
    assert agent_from_dict(json.loads(json.dumps(asdict(config)))) == config
    assert hash(config) == hash(replace(config)) and asdict(config)["method_settings"] == given
    assert agent_from_dict(json.loads(json.dumps(asdict(AGENTS[kind])))) == AGENTS[kind]


MY_METHOD = """
from dataclasses import dataclass

import torch

from ht_ray.methods import Method, MethodSettings, register, setting


@register
class SignDecay(Method):
    name, title, rank = "sign_decay", "Sign Decay", -6

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        amount: float = setting(1e-4, "How far each weight moves.", low=0)

    @torch.no_grad()
    def before_step(self, optimizer):
        for weight in self.module.parameters():
            weight -= self.settings.amount * weight.sign()
"""


def test_a_method_of_ones_own(tmp_path: Path) -> None:
    """By its path, or by its name once its module is imported; a worker imports the module by what is saved."""
    (tmp_path / "my_methods.py").write_text(MY_METHOD)
    code = (
        "import json; from dataclasses import asdict; from ht_ray.agents import DrQConfig\n"
        "by_path = DrQConfig(methods='my_methods:SignDecay+redo', method_settings={'sign_decay_amount': 0.5})\n"
        "assert by_path == DrQConfig(methods='sign_decay+redo', method_settings={'sign_decay_amount': 0.5})\n"
        "print(json.dumps(asdict(by_path)))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    run = {"check": True, "capture_output": True, "text": True, "timeout": 200, "env": environment}
    settings = subprocess.run([sys.executable, "-c", code], **run).stdout  # type: ignore[call-overload]
    assert "my_methods:SignDecay+redo" in settings
    worker = (
        "import json, sys; from ht_ray.agents.registry import agent_from_dict, make_agent\n"
        "config = agent_from_dict(json.loads(sys.argv[1])); assert config.method_config.sign_decay_amount == 0.5\n"
        "print(make_agent(config, shape=(2, 36, 36), num_actions=3).method.name)"
    )
    found = subprocess.run([sys.executable, "-c", worker, settings], **run).stdout  # type: ignore[call-overload]
    assert found == "sign_decay+redo\n"


def test_methods_that_decide_on_the_host_are_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}

    def use_graph(where: str, graph: str, device: Any, *, obstacle: str = "") -> bool:
        seen[where] = obstacle
        return False

    monkeypatch.setattr(base, "use_graph", use_graph)
    agent("drq", "redo+l2+upgd", shrink_perturb_interval=4, head_reset_interval=4)
    assert seen == {"DrQAgent: graph": "upgd and redo decides or draws on the host within an update"}
    agent("drq", "l2+weight_clipping+optimizer_reset", shrink_perturb_interval=4, head_reset_interval=4)
    assert seen == {"DrQAgent: graph": ""}
    agent("bbf", "regenerative")
    assert seen["BBFAgent: graph"] == ""


def test_compiled_networks_show_no_activations() -> None:
    config = replace(AGENTS["drq"], methods="continual_backprop+l2")
    with pytest.raises(SettingError, match="compile = True: continual_backprop looks at activations"):
        make_agent(config, shape=SHAPE, num_actions=ACTIONS, compile=True)


def test_penalties_are_part_of_the_loss() -> None:
    settings = {"l2_strength": 0.5, "l2_coupling": "loss"}
    plain, learner = agent("drq"), agent("drq", "l2", method_settings=settings)
    total = sum(float(parameter.detach().square().sum()) for parameter in learner.network.parameters())
    one, other = plain.update(batch(0)), learner.update(batch(0))
    assert float(other["loss"]) == pytest.approx(float(one["loss"]) + 0.5 * total, rel=1e-4)
    assert torch.equal(one["losses"], other["losses"])


def test_decoupled_decay_by_hand() -> None:
    plain, learner = agent("drq", reset_interval=None), agent("drq", "l2", reset_interval=None)
    before = weights(learner.network)
    plain.update(batch(0))
    learner.update(batch(0))
    l2, rate = learner.method.by_name["l2"], learner.config.learning_rate
    assert isinstance(l2, L2)
    for name, value in weights(learner.network).items():
        expected = plain.network.state_dict()[name] - rate * l2.settings.strength * before[name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


def test_flags_of_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    for name, flag in method_flags().items():
        assert f"--{name.replace('_', '-')}" in said
        assert flag.info.help.split(".")[0] in said.replace("- ", "-")
    path = tmp_path / "record.json"
    arguments = ["--game", "pong", "--steps", "2", "--evaluation-episodes", "0", "--record", str(path)]
    assert main([*arguments, "--methods", "redo+l2", "--redo-interval", "500", "--l2-coupling", "loss"]) == 0
    assert capsys.readouterr().out == "Pong, drq with redo+l2: 2 steps, 0 updates, 0 games\n"
    held = json.loads(path.read_text())["config"]
    assert held["methods"] == "redo+l2" and held["method_settings"] == {"redo_interval": 500, "l2_coupling": "loss"}
    assert main([*arguments, "--methods", "redo", "--l2-strength", "1"]) == 2
    assert "'l2_strength' is no setting of these methods" in capsys.readouterr().err


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, Mapping):
        return one.keys() == two.keys() and all(equal(one[name], two[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)


@pytest.mark.slow
@pytest.mark.parametrize("game", ["RoadRunner", "Pong"])
def test_units_are_recycled_in_a_game_and_a_stopped_run_goes_on(game: str, tmp_path: Path) -> None:
    """600 updates with ReDo and continual backprop, saved in the middle."""
    config = DrQConfig(
        hidden=32,
        batch_size=8,
        replay_capacity=2000,
        learning_starts=100,
        n_step=3,
        momentum=0.99,
        reset_interval=150,
        methods="redo+continual_backprop",
        method_settings={
            "redo_interval": 70,
            "redo_threshold": 0.1,
            "continual_backprop_replacement_rate": 1e-3,
            "continual_backprop_maturity": 50,
        },
    )

    def run() -> TrainingRun:
        return TrainingRun(game, config, seed=1, env=AtariConfig(max_steps=300))

    whole, stopped, continued = run(), run(), run()
    whole.advance(700)
    assert whole.record.updates == 600
    stopped.advance(384)  # between two multiples of ReDo's interval
    stopped.save(tmp_path / "run.bin")
    continued.load(tmp_path / "run.bin")
    continued.advance(700)
    assert equal(whole.agent.state_dict(), continued.agent.state_dict())
    redo, backprop = (whole.agent.method.by_name[name] for name in ("redo", "continual_backprop"))
    assert isinstance(redo, ReDo) and isinstance(backprop, ContinualBackprop)
    print(game, "recycled by ReDo:", redo.recycled, "in", redo.applications, "by continual backprop:",
          backprop.replacements)  # fmt: skip
    assert redo.applications == 8 and redo.recycled > 0 and backprop.replacements > 0
