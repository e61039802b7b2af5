"""The Atari-100k study of BBF: what is planned and refused, a trial against the plain loop, a study on two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import study_files

from ht_ray.agents.bbf.config import BBF_VARIANTS, BBFConfig
from ht_ray.agents.envs.atari import AtariConfig
from ht_ray.agents.registry import agent_variant
from ht_ray.agents.training.train import train
from ht_ray.diagnostics import INDICATORS
from ht_ray.errors import SettingError
from ht_ray.report import load_study, paper_scores
from ht_ray.report.atari.study import variants_of
from ht_ray.sweep import Report
from ht_ray.sweep.driver.local_ray import start_ray
from tune_configs import atari100k
from tune_configs.atari100k import AtariSettings, BBFSettings, schedule_warnings, trials
from tune_configs.atari_trial import AtariTrial

CHECKOUT = Path(__file__).parents[2]
AGENT: dict[str, Any] = {
    "width": 0.0625,
    "hidden": 4,
    "bins": 5,
    "batch_size": 2,
    "spr_steps": 2,
    "learning_starts": 10,
    "epsilon_decay_steps": 10,
    "replay_capacity": 80,
    "restart_interval": 30,
    "cycle_updates": 20,
    "momentum": 0.5,
}
STUDY: dict[str, Any] = {
    "steps": 60,
    "evaluate_every": 30,
    "checkpoint_every": 20,
    "evaluation_episodes": 2,
    "max_steps": 25,
    "seeds": 1,
}


def small(**settings: Any) -> BBFSettings:
    return BBFSettings(**{"games": ("breakout",), "variants": ("bbf",), **AGENT, **STUDY, **settings}).resolved()


def test_the_whole_study_is_the_papers() -> None:
    settings = BBFSettings().resolved()
    planned = trials(settings)
    assert len(planned) == 26 * 3 * 5
    names = dict.fromkeys(spec.settings["variant"] for spec in planned)
    assert list(names) == [name for name in paper_scores() if name.startswith("BBF")]
    assert all(BBFConfig(**spec.config["agent"]) in BBF_VARIANTS.values() for spec in planned)
    assert all(spec.config["differs"] == [] for spec in planned)
    assert schedule_warnings(settings) == []


def test_grid_is_beside_bbf_without_hare_and_tortoise() -> None:
    settings = BBFSettings(games=("Pong",), momenta=(0.99, 0.995), reset_intervals=(1000, 4000), seeds=1).resolved()
    assert [(spec.settings["variant"], spec.settings["reset_interval"]) for spec in trials(settings)] == [
        ("BBF without SPR", None),
        ("BBF without SPR + H&T m=0.99 r=1000", 1000),
        ("BBF without SPR + H&T m=0.99 r=4000", 4000),
        ("BBF without SPR + H&T m=0.995 r=1000", 1000),
        ("BBF without SPR + H&T m=0.995 r=4000", 4000),
    ]


def another(setting: str) -> Any:
    default = getattr(BBFConfig, setting)
    given = {"updates_per_step": 4, "batches_per_sample": 1, "reset_interval": 10, "restart_interval": None}
    given |= {"optimizer_state": "clear", "restart_optimizer_state": "clear", "discount_start": 0.5, "epsilon": 0.5}
    given |= {"momentum_warmup": 0.5, "reset_only": ("head",), "reset_schedule": (5, 10)}
    given |= {"priorities": "published", "restarts": (10, 20)}
    given |= {"methods": "redo", "method_settings": {"redo_interval": 500}}
    if setting in given:
        return given[setting]
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, int) else default / 2


@pytest.mark.parametrize("setting", [field.name for field in fields(BBFConfig) if field.name != "training_steps"])
def test_nothing_that_is_not_the_papers_goes_by_its_name(setting: str) -> None:
    changes = {setting: another(setting)}
    if setting == "method_settings":
        changes["methods"] = "redo"
    settings = BBFSettings(**changes)
    changed = [
        agent
        for agent, name in zip(settings.agents, settings.resolved().variants or (), strict=True)
        if agent.config != BBF_VARIANTS[name]
    ]
    assert changed
    for agent in changed:
        assert getattr(agent.config, setting) == changes[setting]
        assert agent.name not in paper_scores() or any(setting in sentence for sentence in settings.differs)


@pytest.mark.parametrize("state", ["keep", "clear"])
def test_what_a_restart_does_to_the_optimiser_can_be_set_for_every_variant(state: Any) -> None:
    settings = BBFSettings(restart_optimizer_state=state)
    assert {agent.config.restart_optimizer_state for agent in settings.agents} == {state}
    for agent in settings.agents:
        named = f"(restart_optimizer_state={state})" in agent.name
        assert named == (agent.config != BBF_VARIANTS[agent.key])
    saved = json.loads(json.dumps(asdict(settings.resolved())))
    assert BBFSettings.from_json(saved) == settings.resolved()


def test_eight_updates_per_step_are_named() -> None:
    settings = BBFSettings(variants=("bbf@rr8", "bbf-spr0+ht@rr8"), steps=30_000)
    assert [agent.name for agent in settings.agents] == ["BBF rr8", "BBF rr8 without SPR + H&T"]
    assert {agent.config.training_steps for agent in settings.agents} == {30_000}


def test_a_run_without_a_restart_is_told() -> None:
    (told,) = schedule_warnings(BBFSettings(variants=("bbf",), steps=30_000))
    assert "a restart every 40000 gradient steps" in told and "a run has 56000" in told


@pytest.mark.parametrize(
    ("settings", "changes", "said"),
    [
        (BBFSettings, {"variants": ("drq",)}, "one of BBFSettings.agent = 'drq'"),
        (AtariSettings, {"variants": ("bbf",)}, "one of AtariSettings.agent = 'bbf'"),
        (BBFSettings, {"agent": "drq"}, "these are the settings of 'bbf'"),
        (BBFSettings, {"training_steps": 5}, "set steps"),
        (BBFSettings, {"variants": ("bbf-spr0",), "reset_interval": 5}, "none of the variants bbf-spr0"),
        (BBFSettings, {"variants": ("bbf-spr0", "bbf"), "momenta": (0.9,)}, "none of the variants bbf-spr0, bbf"),
        (BBFSettings, {"restart_interval": None, "shrink_perturb_ratio": 0.1}, "restart_interval = None"),
        (BBFSettings, {"spr_weight": 0.0, "variants": ("bbf",), "spr_steps": 3}, "spr_weight = 0.0"),
        (BBFSettings, {"variants": ("bbf", "bbf@rr8"), "updates_per_step": 4}, "the same as 'bbf'"),
        (BBFSettings, {"momenta": (0.9,), "momentum": 0.99}, "give one of the two"),
        (BBFSettings, {"updates_per_step": 3}, "multiples"),
        (BBFSettings, {"indicators_interval": 0}, "indicators_interval = 0"),
    ],
)
def test_what_cannot_work_is_refused(settings: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        settings(**changes)


def test_the_command_line_takes_the_agents_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert atari100k.main(["--agent", "dqn"]) == 2
    assert "--agent = 'dqn': accepted are 'drq', 'bbf'" in capsys.readouterr().err
    assert atari100k.main(["--agent=bbf", "--spr-weight", "-1"]) == 2
    assert "--spr-weight = -1.0" in capsys.readouterr().err
    assert atari100k.main(["--variants", "bbf"]) == 2
    assert "--agent = 'bbf'" in capsys.readouterr().err


def test_a_trial_is_the_plain_loop_with_its_indicators(tmp_path: Path) -> None:
    """In parts, the last of them by another trial that continued from a file; training is as without indicators."""
    (spec,) = trials(small(indicators_interval=32))
    first = AtariTrial(spec.config)
    found: list[Report] = [first.advance() for _ in range(3)]
    first.save(tmp_path)
    second = AtariTrial(spec.config)
    second.load(tmp_path)
    found.append(second.advance())
    record = train(
        "Breakout",
        agent_variant("bbf", **AGENT, training_steps=60),
        steps=60,
        env=AtariConfig(max_steps=25),
        evaluate_every=30,
        evaluation_episodes=2,
        indicators_interval=32,
    )
    assert asdict(second.run.record) == asdict(record)
    assert found[-1].summary["updates"] == record.updates == 100
    measured = [row for report in found for row in report.curves["indicators"]]
    assert measured == record.indicators
    assert [(row["step"], row["update"]) for row in measured] == [(26, 32), (42, 64), (58, 96)]
    assert measured[0].keys() - {"step", "update"} <= INDICATORS.keys()
    assert measured[0]["weight_distance"] > 0 and 0 <= measured[0]["dormant_ratio"] <= 1
    without = train(
        "Breakout",
        agent_variant("bbf", **AGENT, training_steps=60),
        steps=60,
        env=AtariConfig(max_steps=25),
        evaluate_every=30,
        evaluation_episodes=2,
    )
    assert asdict(without) == {**asdict(record), "indicators": []}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_study_on_two_nodes_has_its_report_beside_the_papers(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80_000_000, "include_dashboard": False}
    nodes = start_ray(lambda: Cluster(initialize_head=True, head_node_args=node))
    try:
        start_ray(lambda: nodes.add_node(num_cpus=1, num_gpus=0, object_store_memory=80_000_000))
        flags = {**AGENT, **STUDY, "games": "breakout", "address": nodes.address, "results_dir": tmp_path / "study"}
        line = [part for name, value in flags.items() for part in ("--" + name.replace("_", "-"), str(value))]
        line += ["--agent", "bbf", "--variants", "bbf", "bbf-spr0+ht", "--reset-interval", "7"]
        done = subprocess.run(
            [sys.executable, str(CHECKOUT / "tune_configs" / "atari100k.py"), *line, "--indicators-interval", "50"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=1200,
        )
    finally:
        nodes.shutdown()
    assert done.returncode == 0, done.stderr
    study = tmp_path / "study"
    variants = variants_of(load_study(study))
    assert [variant.name for variant in variants] == ["BBF (spr_steps=2)", "BBF without SPR + H&T m=0.5 r=7"]
    record = train(
        "Breakout",
        BBFConfig(**AGENT, training_steps=60, spr_weight=0.0, reset_interval=7),
        steps=60,
        env=AtariConfig(max_steps=25),
        evaluation_episodes=2,
    )
    assert variants[1].raw["Breakout"].tolist() == [record.final_score]
    page = (study / "table.md").read_text()
    for part in ("BBF without SPR + H&T m=0.5 r=7", "paper", "60 of 100 000 steps", "width = 0.0625 instead of 4.0"):
        assert part in page
    assert (study / "figures" / "atari_efficiency.png").is_file()
    assert {"indicators/dormant_ratio", "evaluation/score"} <= study_files.scalars(
        study, "bbf-spr0+ht-Breakout-seed0"
    ).keys()
