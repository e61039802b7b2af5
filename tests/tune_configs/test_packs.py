"""Vision studies whose trials are trained in packs."""

from __future__ import annotations

import importlib.util
import json
import shlex
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from study_files import all_reports, plain_loop, reports, rows, status, table
from test_study_runs import METHODS, kill_worker

from ht_ray.errors import Diverged, Interrupted, SettingError
from ht_ray.sweep import Report, TrialSpec
from ht_ray.vision import ContinualConfig, DataConfig, load_data
from tune_configs import ablation
from tune_configs.ablation import AblationSettings
from tune_configs.command_line import main as run_main
from tune_configs.continual import ContinualSettings
from tune_configs.continual import trials as continual_trials
from tune_configs.packs import packed
from tune_configs.vision_trial import VisionPack, VisionTrial

pytestmark = pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")

SHAPE = (1, 8, 8)

needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs ht-ray[optuna]")


def groups(
    settings: Any, trials: Any, shape: tuple[int, int, int] = SHAPE, cpus: float = 1.0
) -> tuple[dict[str, str | None], list[str]]:
    found, said = packed(settings, trials(settings), cpus, shape=shape, num_classes=10)
    return {spec.id: spec.pack for spec in found}, said


def test_small_networks_are_packed_with_their_like() -> None:
    found, said = groups(AblationSettings().resolved(), ablation.trials)
    assert (len(found), set(found.values()), said) == (75, {"pack1"}, [])
    # Full and limited access have other phases; so have other batches, which augmentation does not change.
    settings = ContinualSettings(methods=("plain", "hare_tortoise", "augment", "l2+redo"), seeds=2).resolved()
    found, said = groups(settings, continual_trials)
    assert {name: pack for name, pack in found.items() if "seed0" in name} == {
        "full-plain-seed0": "pack1",
        "full-hare_tortoise-m0.99-r5e-seed0": "pack1",
        "full-augment-seed0": "pack2",
        "full-l2+redo-seed0": "pack1",
        "buffer-plain-seed0": "pack3",
        "buffer-hare_tortoise-m0.99-r5e-seed0": "pack3",
        "buffer-augment-seed0": "pack4",
        "buffer-l2+redo-seed0": "pack3",
    }
    assert said == []


def test_what_is_alone_stays_alone() -> None:
    one = ContinualSettings(methods=("plain",), seeds=1, access=("full",)).resolved()
    assert groups(one, continual_trials) == ({"full-plain-seed0": None}, [])
    off = AblationSettings(pack="off").resolved()
    assert set(groups(off, ablation.trials)[0].values()) == {None}
    threads, said = groups(AblationSettings().resolved(), ablation.trials, cpus=2.0)
    assert (set(threads.values()), said) == ({None}, [])
    threads, said = groups(AblationSettings(pack="9").resolved(), ablation.trials, cpus=2.0)
    assert set(threads.values()) == {"pack1"}
    assert "the last bits of a trial may depend on the others in its pack" in said[0]
    for scheduler in ("asha", "pbt"):
        searched = AblationSettings(scheduler=scheduler).resolved()
        assert set(groups(searched, ablation.trials)[0].values()) == {"pack1"}


@needs_optuna
def test_suggestions_come_in_packs_if_asked_for() -> None:
    settings = AblationSettings(search="optuna").resolved()
    assert set(groups(settings, ablation.trials)[0].values()) == {None}
    found, said = groups(replace(settings, pack="8"), ablation.trials)
    assert (set(found.values()), said) == ({"pack1"}, [])


def test_packs_that_are_asked_for_say_who_is_left_out() -> None:
    methods = ("plain", "continual_backprop", "plasticity_injection")
    settings = ContinualSettings(methods=methods, seeds=2, access=("full",), pack="4").resolved()
    found, said = groups(settings, continual_trials)
    assert {name for name, pack in found.items() if pack} == {"full-plain-seed0", "full-plain-seed1"}
    assert said == [
        "Continual Backprop is trained alone, not in a pack: continual_backprop acts within every step, on one network "
        "at a time.",
        "Plasticity Injection is trained alone, not in a pack: plasticity_injection gives each network another "
        "structure.",
    ]
    assert settings.pack_size == 4
    assert AblationSettings().pack_size is None


def test_auto_leaves_alone_what_would_not_gain() -> None:
    settings = ContinualSettings(data="mnist", methods=("plain",), seeds=2, access=("full",), hidden=(1000, 1000))
    trials = continual_trials
    assert set(groups(settings.resolved(), trials, (1, 28, 28))[0].values()) == {None}
    assert set(groups(replace(settings, pack="2").resolved(), trials, (1, 28, 28))[0].values()) == {"pack1"}
    narrow = replace(settings, hidden=(100, 100), batch_size=64)
    assert set(groups(narrow.resolved(), trials, (1, 28, 28))[0].values()) == {"pack1"}
    convolutions = ContinualSettings(data="cifar10", model="resnet18", width=0.1, methods=("plain",), pack="4")
    found, said = groups(convolutions.resolved(), trials, (3, 32, 32))
    assert set(found.values()) == {None}
    assert "the network has" in said[0]


@pytest.mark.parametrize("value", ["of", "1", "0", "-3", "2.5", "100000"])
def test_wrong_sizes_are_refused(value: str) -> None:
    with pytest.raises(SettingError, match="pack"):
        AblationSettings(pack=value)


# --- the pack that a worker holds


def configs(count: int = 3, **chosen: Any) -> dict[str, dict[str, Any]]:
    settings = AblationSettings(phases=3, epochs=2, train_limit=200, seeds=count, momenta=(0.5,), **chosen).resolved()
    return {spec.id: spec.config for spec in ablation.trials(settings) if "plain" in spec.id or "tortoise" in spec.id}


@pytest.fixture(scope="module")
def shared() -> Any:
    return load_data(DataConfig("digits", train_limit=200)).to_arrays()


def run(pack: VisionPack) -> dict[str, list[Report]]:
    found: dict[str, list[Report]] = {}
    names = set(pack.runs)
    while names:
        for name, report in pack.advance().items():
            assert isinstance(report, Report)
            found.setdefault(name, []).append(report)
            if report.progress == 1:
                names.discard(name)
                pack.drop(name)
    return found


def test_reports_are_those_of_trials_alone(shared: Any) -> None:
    assert VisionTrial.pack is VisionPack
    chosen = configs(2)
    found = run(VisionPack(chosen, shared))
    for name in list(chosen)[::5]:
        trial = VisionTrial(chosen[name], shared)
        for report in found[name]:
            alone = trial.advance()
            assert (report.progress, report.samples, list(report.summary)) == (
                alone.progress,
                alone.samples,
                list(alone.summary),
            )
            for curve, expected in alone.curves.items():
                for row, other in zip(report.curves[curve], expected, strict=True):
                    assert row == pytest.approx(other, rel=1e-3, abs=2e-2)


def test_a_trial_goes_on_from_what_it_saved_in_any_company(shared: Any, tmp_path: Path) -> None:
    chosen = configs()
    expected = run(VisionPack(chosen, shared))
    pack = VisionPack(chosen, shared)
    pack.advance()
    pack.interrupt()
    with pytest.raises(Interrupted):
        pack.advance()
    for name in chosen:
        (tmp_path / name).mkdir()
        pack.save(name, tmp_path / name)
    first, second = list(chosen)[::2], list(chosen)[1::2]
    for names in (first, second):
        other = VisionPack({name: chosen[name] for name in names}, shared)
        for name in names:
            other.load(name, tmp_path / name)
        assert run(other) == {name: expected[name][1:] for name in names}


def tensors_of(run: Any) -> list[torch.Tensor]:
    """All that a run has learnt: its network, its tortoise, its moments and steps."""
    moments = [tensor for state in run.optimizer.state.values() for tensor in state.values()]
    return [*run.model.state_dict().values(), *run.method.tortoise.weights.state_dict().values(), *moments]


def test_a_copy_has_the_state_of_its_source_and_settings_of_its_own(shared: Any, tmp_path: Path) -> None:
    """In float32, bit by bit, in any company; the learning rate is one of the settings."""
    settings = AblationSettings(phases=3, epochs=2, train_limit=200, seeds=1, momenta=(0.5, 0.7, 0.9), baselines=())
    chosen = {spec.id: spec.config for spec in ablation.trials(settings.resolved())}
    first, second, *others = list(chosen)
    chosen[second]["method"]["momentum"] = 0.8
    chosen[second]["training"]["learning_rate"] = 3e-3
    pack = VisionPack(chosen, shared)
    pack.advance()
    (tmp_path / first).mkdir()
    pack.save(first, tmp_path / first)
    reports = []
    for company in ([second], [second, *others]):
        copied = VisionPack({name: chosen[name] for name in company}, shared)
        for name in company:  # the others, too, as it is the same
            copied.load(name, tmp_path / first)
        source, copy = pack.runs[first], copied.runs[second]
        pairs = zip(tensors_of(source), tensors_of(copy), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        assert (copy.rows, copy.method.tortoise.momentum) == (source.rows, 0.8)
        assert copy.optimizer.param_groups[0]["lr"] == 3e-3
        reports.append([copied.advance()[second], copied.advance()[second]])
    assert reports[0] == reports[1]
    # What it goes on with matters.
    (tmp_path / "alone").mkdir()
    source = VisionPack({first: chosen[first]}, shared)
    source.load(first, tmp_path / first)
    assert source.advance()[first] != reports[0][0]


def test_a_copy_of_another_seed_or_method_is_refused(shared: Any, tmp_path: Path) -> None:
    chosen = configs(2)
    pack = VisionPack(chosen, shared)
    name, method = "full-hare_tortoise-m0.5-r1e-seed1", "full-plain-seed0"
    for other, why in ((name, "another seed and phases"), (method, "the state is of")):
        (tmp_path / other).mkdir()
        pack.save(other, tmp_path / other)
        with pytest.raises(ValueError, match=why):
            VisionPack(chosen, shared).load("full-hare_tortoise-m0.5-r1e-seed0", tmp_path / other)


def test_one_that_diverges_is_told_and_dropped(shared: Any) -> None:
    chosen = configs(2)
    expected = run(VisionPack(chosen, shared))
    wild = {**next(iter(chosen.values()))}
    wild["training"] = {**wild["training"], "learning_rate": 1e20, "clip": 1e30}
    pack = VisionPack({"wild": wild, **chosen}, shared)
    found = pack.advance()
    assert isinstance(found["wild"], Diverged)
    pack.drop("wild")
    assert {name: report for name, report in found.items() if name != "wild"} == {
        name: reports[0] for name, reports in expected.items()
    }
    assert run(pack) == {name: reports[1:] for name, reports in expected.items()}


# --- whole studies

ABLATION = shlex.split("--momenta 0.5 --reset-intervals 1 --phases 3 --epochs 20 --seeds 2 --train-limit 600")


def with_a_wild_one(settings: AblationSettings) -> tuple[TrialSpec, ...]:
    first, *others = ablation.trials(settings)
    training = {**first.config["training"], "learning_rate": 1e20, "clip": 1e30}
    wild = replace(first, id="wild", label="Wild", config={**first.config, "training": training})
    return (wild, first, *others)


@pytest.mark.usefixtures("cluster")
def test_a_study_whose_packs_are_killed_is_the_study_that_was_not(tmp_path: Path) -> None:
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    assert ablation.main([*ABLATION, "--tensorboard", "none", "--results-dir", str(quiet)]) == 0
    found = table(quiet)
    assert {row["executor"] for row in found} == {"pack"}
    assert "executor" not in json.loads((quiet / "config.json").read_text())["settings"]
    for name, method in METHODS.items():
        expected = plain_loop(ContinualConfig(phases=3, epochs=20), method, seed=1, train_limit=600)
        for row, other in zip(rows(quiet, f"{name}-seed1"), expected, strict=True):
            assert (row["step"], row["phase"], row["epoch"]) == (other["step"], other["phase"], other["epoch"])
            assert abs(row["test_accuracy"] - other["test_accuracy"]) < 0.05

    killer = threading.Thread(target=kill_worker, args=(disturbed / "trials" / "full-plain-seed0" / "results.jsonl",))
    killer.start()
    arguments = [*ABLATION, "--max-concurrent", "1", "--results-dir", str(disturbed)]
    assert run_main("ablation", AblationSettings, with_a_wild_one, "", arguments) == 0
    killer.join()
    assert status(disturbed, "wild")["status"] == "diverged"
    others = {name: reports(disturbed, name) for name in all_reports(quiet)}
    assert others == all_reports(quiet)
    assert table(disturbed)[1:] == found
    assert max(status(disturbed, name)["restarts"] for name in others) == 1
