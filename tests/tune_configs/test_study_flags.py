"""Flags of the studies: made of the settings' own fields, under one name each, old names for one minor version."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ht_ray.diagnostics import IndicatorConfig
from ht_ray.errors import SettingError
from ht_ray.methods import registry
from ht_ray.sweep import Study, SweepConfig, TrialSpec
from ht_ray.sweep.study.plan import create_study
from ht_ray.vision import STREAMS, DataConfig, ModelConfig, TrainingConfig
from tune_configs import ablation, atari100k, command_line, continual, warm_start
from tune_configs.ablation import AblationSettings
from tune_configs.atari100k import AtariSettings
from tune_configs.continual import ContinualSettings
from tune_configs.flags import flag_name, flags_of, help_texts
from tune_configs.settings import RENAMED, StudySettings, VisionSettings
from tune_configs.vision_trial import trial_config
from tune_configs.warm_start import WarmStartSettings

STUDIES: dict[str, tuple[ModuleType, type[StudySettings]]] = {
    "ablation": (ablation, AblationSettings),
    "continual": (continual, ContinualSettings),
    "warm_start": (warm_start, WarmStartSettings),
    "atari100k": (atari100k, AtariSettings),
}

Plan = Callable[..., tuple[Any, tuple[TrialSpec, ...]]]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """What a command line plans: its settings and trials."""
    seen: list[Any] = []

    def keep(name: str, settings: Any, run: SweepConfig, trials: Any, prepare: Any, program: str) -> int:
        seen.append((settings, trials(settings)))
        return 0

    monkeypatch.setattr(command_line, "_run", keep)

    def planned(study: str, *arguments: str) -> Any:
        assert STUDIES[study][0].main(list(arguments)) == 0
        return seen.pop()

    return planned


# --- one name, one default, one type


@pytest.mark.parametrize("config", [DataConfig, ModelConfig, TrainingConfig, IndicatorConfig, *STREAMS.values()])
def test_settings_are_those_of_the_configurations(config: type[Any]) -> None:
    flags = {flag.name: flag for flag in flags_of(VisionSettings, "Study")}
    implied = {"model", "learning_rate", "weight_decay", "batch_size", "augment", "buffer_size"}
    for field in fields(config):
        if field.name == "fresh":
            continue
        name = RENAMED[config.__name__, field.name]
        assert flags[name].default == (None if name in implied else 20 if name == "epochs" else field.default), name
        first = help_texts(config)[field.name].partition(".")[0].partition(";")[0]
        assert first.lower() in flags[name].help.lower()


@pytest.mark.parametrize("study", ["ablation", "continual", "warm_start"])
def test_settings_of_methods_are_those_of_the_registry(study: str) -> None:
    flags = {flag.name: flag for flag in flags_of(STUDIES[study][1], "Study")}
    for name, setting in registry.all_settings().items():
        if name in ("momentum", "reset_interval"):  # of which a study has a grid, or another default
            continue
        assert (flags[name].kind, flags[name].default) == (setting.kind, setting.default), name
        assert flags[name].section == "Methods"


# --- old names

# A value of each that is not the default, and the methods that have it.
OLD = {
    "ratio": ("0.5", "shrink_perturb"),
    "perturb": ("0.1", "shrink_perturb"),
    "weight_noise": ("0.2", "shrink_perturb"),
    "augmentation": ("crop", "augment"),
    "spectral_strength": ("0.02", "spectral_decoupling"),
    "distillation_strength": ("0.5", "self_distillation"),
    "distillation_temperature": ("2.0", "self_distillation"),
    "injection_times": ("2", "plasticity_injection"),
    "cbp_replacement_rate": ("0.01", "continual_backprop"),
    "cbp_maturity": ("7", "continual_backprop"),
    "cbp_utility_decay": ("0.9", "continual_backprop"),
}


def test_every_old_name_is_known() -> None:
    assert OLD.keys() | {"reinitialise_tortoise"} == VisionSettings.old_names().keys()


@pytest.mark.parametrize("name", OLD)
@pytest.mark.parametrize("joined", [False, True], ids=["apart", "="])
def test_old_names_warn_and_mean_the_same(
    name: str, joined: bool, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    value, method = OLD[name]
    new = flag_name(ContinualSettings.old_names()[name])
    others = ["--methods", "plain", method, "--seeds", "1"]
    given = [f"{flag_name(name)}={value}"] if joined else [flag_name(name), value]
    found = plan("continual", *given, *others)
    told = capsys.readouterr().err
    assert told == (
        f"continual.py: warning: {flag_name(name)} is called {new} now; the old name goes with the next minor "
        "version.\n"
    )
    assert found == plan("continual", new, value, *others)
    assert found != plan("continual", *others)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("study", "methods"), [("ablation", []), ("continual", []), ("warm_start", [])])
def test_old_names_that_are_switches(
    study: str, methods: list[str], plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    found = plan(study, "--no-reinitialise-tortoise")
    assert "--no-reinitialise-tortoise is called --no-reinitialize-tortoise now" in capsys.readouterr().err
    assert found == plan(study, "--no-reinitialize-tortoise")
    assert not found[0].reinitialize_tortoise


def test_the_labels_noise_keeps_its_name(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    settings, _ = plan("continual", "--noise", "0.1")
    assert settings.noise == "0.1" and settings.shrink_perturb_noise == 0
    assert capsys.readouterr().err == ""


def test_settings_that_were_written_under_old_names_are_read() -> None:
    settings = ContinualSettings(shrink_perturb_ratio=0.5, reinitialize_tortoise=False, continual_backprop_maturity=3)
    back = {new: old for old, new in ContinualSettings.old_names().items()}
    saved = {back.get(name, name): value for name, value in json.loads(json.dumps(asdict(settings))).items()}
    assert {"ratio", "reinitialise_tortoise", "cbp_maturity"} <= saved.keys()
    assert ContinualSettings.from_json(saved) == settings


@pytest.mark.parametrize("agent", ["drq", "bbf"])
@pytest.mark.parametrize("given", ["--lr 0.5", "--adam-epsilon 0.5", "--{}prioritised", "--no-reinitialise-tortoise"])
def test_old_names_of_agents(agent: str, given: str, plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    others = ["--agent", agent, "--games", "pong", "--seeds", "1"]
    # BBF has what is to be given.
    old, *value = given.format("no-" if agent == "bbf" else "").split()
    found = plan("atari100k", old, *value, *others)
    new = capsys.readouterr().err.split("is called ")[1].split(" now;")[0]
    assert new != old
    assert found == plan("atari100k", new, *value, *others)
    assert found != plan("atari100k", *others)
    assert capsys.readouterr().err == ""


def test_a_study_that_was_planned_under_old_names_goes_on_as_planned(tmp_path: Path) -> None:
    settings = ContinualSettings(methods=("shrink_perturb", "hare_tortoise"), shrink_perturb_ratio=0.5, seeds=1)
    now = continual.trials(settings.resolved())
    old = []
    for spec in now:
        method = dict(spec.config["method"])
        # Every method's settings were in it, under the names of then.
        method |= {"ratio": method.pop("shrink_perturb_ratio", 0.8), "cbp_maturity": 100, "l2_strength": 0.1}
        if "reinitialize_tortoise" in method:
            method["reinitialise_tortoise"] = method.pop("reinitialize_tortoise")
        old.append(TrialSpec(spec.id, spec.label, spec.settings, {**spec.config, "method": method}))
    create_study(tmp_path, Study("continual", "a:b", tuple(old), "m", settings=asdict(settings)))
    found = command_line._as_planned(str(tmp_path), settings, now)
    assert [spec.config["method"]["ratio"] for spec in found] == [spec.config["method"]["ratio"] for spec in old]
    assert [trial_config(spec.config) for spec in found] == [trial_config(spec.config) for spec in now]
    other = continual.trials(ContinualSettings(**{**asdict(settings), "shrink_perturb_ratio": 0.4}).resolved())
    assert command_line._as_planned(str(tmp_path), settings, other) == other


# --- methods of one's own

MINE = '''
from dataclasses import dataclass
from ht_ray.methods import Method, MethodSettings, register, setting

@register
class Decay(Method):
    """Moves weights towards zero."""

    name, title, rank = "my_decay", "My Decay", -6

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        amount: float = setting(0.25, "How far a weight moves.", low=0)
'''


def test_flags_of_a_method_of_ones_own_appear_by_themselves(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_methods.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    methods = ("--methods", "plain", "my_methods:Decay", "my_methods:Decay:my_decay_amount=2")
    settings, trials = plan("continual", *methods, "--my-decay-amount", "0.5", "--seeds", "1", "--access", "full")
    assert [spec.label for spec in trials] == ["Plain", "My Decay", "My Decay (my_decay_amount=2)"]
    assert [spec.config["method"].get("my_decay_amount") for spec in trials] == [None, 0.5, 2]
    # By which a worker imports it.
    assert trials[1].config["method"]["sources"] == {"my_decay": "my_methods:Decay"}
    assert str(tmp_path) in sys.path
    assert json.loads(json.dumps(asdict(settings)))["my_decay_amount"] == 0.5
    with pytest.raises(SystemExit, match="0"):
        continual.main([*methods, "--help-all"])
    assert "--my-decay-amount FLOAT" in capsys.readouterr().out
    assert continual.main([*methods, "--my-decay-amount", "-1"]) == 2
    assert "--my-decay-amount = -1.0: accepted is a number with 0 <= my_decay_amount" in capsys.readouterr().err


# --- help


def shown(study: str, *arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        STUDIES[study][0].main(list(arguments))
    assert ended.value.code == 0


@pytest.mark.parametrize("study", STUDIES)
def test_help_is_short_and_help_all_has_every_flag(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, config = STUDIES[study]
    shown(study, "--help")
    short = capsys.readouterr().out
    shown(study, "--help-all")
    full = capsys.readouterr().out
    for text in (short, full):
        assert max(map(len, text.splitlines())) <= 100
        assert text.count("(default:") == text.count("\n  --")
        # What it is about comes first.
        assert " ".join(str(module.__doc__).split())[:60] in " ".join(text.split())
    assert short.count("\n  --") == len(config.most_used) == 15
    assert len(short.splitlines()) < 70
    for flag in (*flags_of(config, "Study"), *flags_of(SweepConfig, "Running")):
        assert f"\n  {flag_name(flag.name)}" in full


def test_help_shows_what_will_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    def defaults(*arguments: str) -> list[str]:
        shown("warm_start", "--help-all", *arguments)
        text = " ".join(capsys.readouterr().out.split())
        return [text.split(f"{flag} ")[1].split("(default: ")[1].split(")")[0] for flag in ("--model", "--batch-size")]

    assert defaults() == ["mlp", "32"]
    assert defaults("--data", "cifar10") == ["resnet18", "256"]


def test_help_lists_choices(capsys: pytest.CaptureFixture[str]) -> None:
    shown("continual", "--help-all")
    text = capsys.readouterr().out
    for choices in ("{digits,mnist,", "{mlp,resnet18,", "{full,buffer,new} ...", "{epochs,steps}", "{fp32,bf16}"):
        assert choices in text
    assert "--reset-at-phase-end, --no-reset-at-phase-end" in text


# --- errors


def test_errors_are_described_by_the_names_of_whoever_asks() -> None:
    error = SettingError(
        owner="DataConfig", field="root", value="{x}", reason=": not with {DataConfig.download}; {found!r}.", found="}"
    )
    assert str(error) == "DataConfig.root = '{x}': not with DataConfig.download; '}'."
    called = command_line._flag_of(AblationSettings)
    assert error.describe(called) == "--data-root = '{x}': not with --download; '}'."
    outer = SettingError(owner="SweepConfig", field="resume", value="y", reason=": {why}", why=error)
    assert outer.describe(called) == "--resume = 'y': --data-root = '{x}': not with --download; '}'."
    assert error.of("VisionSettings", "data").describe(called).startswith("--data = '{x}': not with --download")
