"""The warm-start study: what it plans, what it refuses, and that its trials are those of the plain loop."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from study_files import all_reports, plain_loop, reports, rows, table

from ht_ray.diagnostics import IndicatorConfig
from ht_ray.errors import SettingError
from ht_ray.report import load_study
from ht_ray.sweep import Study, TrialSpec
from ht_ray.vision import (
    DATA_SETS,
    DataConfig,
    MethodConfig,
    ModelConfig,
    Stream,
    TrainingConfig,
    WarmStartConfig,
    fit,
    load_data,
    make_model,
    make_stream,
)
from tune_configs import warm_start
from tune_configs.prepare import unused_settings
from tune_configs.settings import PRESETS
from tune_configs.vision_trial import VisionTrial, stream_of
from tune_configs.warm_start import WarmStartSettings

LABELS = torch.arange(1000) % 10


def planned(**settings: Any) -> tuple[TrialSpec, ...]:
    return warm_start.trials(WarmStartSettings(**settings).resolved())


def stream(spec: TrialSpec) -> Stream:
    return stream_of(spec.config, LABELS, 10)


# --- the grid


def test_grid_is_that_of_tables_4_and_5() -> None:
    specs = planned(seeds=1)
    assert len(specs) == 36
    cells = [(spec.settings["subset_ratio"], spec.settings["label_noise"]) for spec in specs]
    assert cells == [(r, n) for r in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0) for n in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)]
    assert (specs[5].label, specs[5].id) == ("ratio 0.1 noise 0.5", "warm_start-plain-ratio0.1-noise0.5-seed0")
    # Appendix A: epochs of the first phase, for an equal number of updates.
    first = {spec.settings["subset_ratio"]: stream(spec)[0].epochs for spec in specs}
    assert first == {0.1: 1000, 0.2: 500, 0.4: 250, 0.6: 166, 0.8: 125, 1.0: 100}
    for spec, (ratio, noise) in zip(specs, cells, strict=True):
        warm, whole = stream(spec)
        assert (len(warm), warm.noise, len(whole), whole.epochs) == (round(1000 * ratio), noise, 1000, 100)
        assert spec.config["method"]["name"] == "plain"


@given(ratio=st.floats(0.01, 1), epochs=st.integers(1, 200), batch=st.sampled_from([10, 32, 256]))
def test_both_phases_have_as_many_updates_but_for_an_epochs_rounding(ratio: float, epochs: int, batch: int) -> None:
    warm, whole = make_stream(LABELS, 10, WarmStartConfig(subset_ratio=ratio, epochs=epochs), seed=0)
    # In samples: the number of batches rounds up in every epoch.
    share = len(warm) / len(LABELS) / ratio  # what rounding to whole samples makes of the ratio
    samples = len(whole) * epochs
    assert samples * share - len(warm) - 1e-6 * samples <= len(warm) * warm.epochs <= samples * share * (1 + 1e-6)
    updates = warm.epochs * math.ceil(len(warm) / batch)
    assert updates >= len(warm) * warm.epochs / batch


def test_more_seeds_for_the_corners_come_last() -> None:
    specs = planned(seeds=1, corner_seeds=5)
    assert len(specs) == 36 + 4 * 4
    assert specs[:36] == planned(seeds=1)
    corners = [(r, n) for r in (0.1, 1.0) for n in (0.0, 0.5)]
    assert [(s.settings["subset_ratio"], s.settings["label_noise"], s.settings["seed"]) for s in specs[36:]] == [
        (*corner, seed) for corner in corners for seed in (1, 2, 3, 4)
    ]
    assert planned(seeds=2, corner_seeds=2) == planned(seeds=2)
    line = planned(seeds=1, corner_seeds=2, subset_ratios=(0.5,), label_noises=(0.0, 0.5), first_seed=3)
    assert [s.settings["seed"] for s in line] == [3, 3, 4, 4]


# --- methods


def test_methods_are_those_of_the_paper_with_its_settings() -> None:
    specs = planned(compare="methods", seeds=1)
    names = [spec.settings["method"] for spec in specs]
    assert names == list(WarmStartSettings.methods)
    for spec in specs:
        fresh = str(spec.settings["method"]).startswith("fresh")
        assert (spec.settings["subset_ratio"], spec.settings["label_noise"]) == ((None, None) if fresh else (0.1, 0.5))
        assert [(len(p), p.epochs, p.noise) for p in stream(spec)] == [(100, 1000, 0.5)] * (not fresh) + [
            (1000, 100, 0.0)
        ]
        assert spec.config["training"]["augment"] == "none"
    by_part = {part: s.config["method"] for s in specs for part in s.config["method"]["name"].split("+")}
    tortoise, shrink, redo = (by_part[name] for name in ("hare_tortoise", "shrink_perturb", "redo"))
    assert (tortoise["momentum"], tortoise["reset_interval"], tortoise["reset_unit"]) == (0.999, 10, "epochs")
    assert [by_part[name]["momentum"] for name in ("ema", "self_distillation")] == [0.999, 0.999]
    assert (shrink["shrink_perturb_ratio"], shrink["shrink_perturb_noise"], shrink["toward"]) == (0.8, 0.0, "initial")
    assert (redo["redo_interval"], redo["redo_unit"]) == (5, "epochs")
    labels = {spec.settings["method"]: spec.label for spec in specs}
    assert (labels["fresh"], labels["fresh+augment"]) == ("Fresh", "Fresh + Augmentation")


def test_fresh_combines_like_a_method() -> None:
    specs = planned(compare="methods", methods=("fresh", "L2 + Fresh:l2_strength=0.5", "fresh+ema"), seeds=1)
    assert [spec.id for spec in specs] == [
        "warm_start-fresh-seed0",
        "warm_start-fresh+l2-l2_strength=0.5-seed0",
        "warm_start-fresh+ema-m0.999-seed0",
    ]
    assert specs[1].label == "Fresh + L2 (l2_strength=0.5)"
    assert specs[1].config["method"]["l2_strength"] == 0.5
    assert all(len(stream(spec)) == 1 for spec in specs)


def test_base_is_added_to_every_method_once() -> None:
    chosen = ("plain", "fresh", "fresh+augment", "l2", "shrink_perturb+l2+augment", "redo:redo_interval=2")
    specs = planned(compare="methods", methods=chosen, base="l2+augment", seeds=1)
    assert [spec.settings["method"] for spec in specs] == [
        "l2+augment",
        "fresh+l2+augment",
        "shrink_perturb+l2+augment",
        "redo+l2+augment",
    ]
    assert specs[-1].config["method"]["redo_interval"] == 2


# --- Adam


def test_adam_grid() -> None:
    specs = planned(compare="adam", beta1s=(0.0, 0.9), beta2s=(0.999,), epsilons=(1e-8, 0.01), seeds=2)
    assert [spec.label for spec in specs][::2] == [
        "β1=0 β2=0.999 ε=1e-08",
        "β1=0 β2=0.999 ε=0.01",
        "β1=0.9 β2=0.999 ε=1e-08",
        "β1=0.9 β2=0.999 ε=0.01",
    ]
    for spec in specs:
        method = spec.config["method"]
        assert method["adam_betas"] == (spec.settings["beta1"], spec.settings["beta2"])
        assert method["adam_eps"] == spec.settings["epsilon"]
        assert (spec.settings["subset_ratio"], spec.settings["label_noise"]) == (0.1, 0.5)


# --- settings


@pytest.mark.parametrize("data", DATA_SETS)
@pytest.mark.parametrize("model", ["mlp", "resnet18", "vit_tiny", "vgg16"])
def test_learning_rate_and_weight_decay_go_with_the_network(data: str, model: str) -> None:
    training = planned(data=data, model=model, seeds=1)[0].config["training"]
    (home,) = {
        (preset["learning_rate"], preset["weight_decay"]) for preset in PRESETS.values() if preset["model"] == model
    }
    assert (training["learning_rate"], training["weight_decay"]) == home
    assert training["batch_size"] == PRESETS[data]["batch_size"]
    given_ones = planned(data=data, model=model, learning_rate=0.5, weight_decay=0.0, seeds=1)[0].config["training"]
    assert (given_ones["learning_rate"], given_ones["weight_decay"]) == (0.5, 0.0)


@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"corner_seeds": 9, "subset_ratios": (0.3,), "data": "cifar10", "model": "vgg16"},
        {"compare": "methods", "base": "l2", "subset_ratio": 0.5},
        {"compare": "adam", "beta1s": (0.2,)},
    ],
)
def test_settings_survive_json_and_ids_are_unique(chosen: Mapping[str, Any]) -> None:
    settings = WarmStartSettings(**chosen)
    for kept in (settings, settings.resolved()):
        assert WarmStartSettings.from_json(json.loads(json.dumps(asdict(kept)))) == kept
    assert settings.resolved().resolved() == settings.resolved()
    assert settings.metric == "final_accuracy"
    specs = warm_start.trials(settings.resolved())
    Study(name="warm_start", factory="a:b", trials=specs, metric="m")  # refuses ids that are given twice
    assert len({(spec.label, spec.settings["seed"]) for spec in specs}) == len(specs)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"stream": "continual"}, "stream = 'continual': accepted are 'warm_start'"),
        ({"compare": "method"}, "Did you mean 'methods'"),
        ({"subset_ratios": (0.1, 0)}, "subset_ratios = 0: accepted is a number with 0 < subset_ratios <= 1"),
        ({"label_noises": (1.5,)}, "label_noises = 1.5"),
        ({"label_noises": ()}, "label_noises = (): accepted is at least one"),
        ({"subset_ratios": (0.1, 0.1)}, "subset_ratios = 0.1: it is given twice"),
        ({"subset_ratio": 0.5}, "subset_ratio = 0.5: it has no meaning for WarmStartSettings.compare = 'grid', g"),
        ({"label_noise": 0.1}, "give WarmStartSettings.label_noises."),
        ({"noise": "0.5"}, "noise = '0.5': it has no meaning for WarmStartSettings.compare = 'grid', give"),
        ({"compare": "methods", "noise": "0.5"}, "give WarmStartSettings.label_noise."),
        ({"subset_ratios": (0.1, 0.1 + 1e-15)}, "it is the same as 0.1"),
        ({"corner_seeds": 2, "seeds": 3}, "corner_seeds = 2: accepted is"),
        ({"phases": 3}, "phases = 3: it has no meaning"),
        ({"methods": ("plain",)}, "methods = ('plain',): it has no meaning for WarmStartSettings.compare = 'grid'"),
        ({"epsilons": (1.0,)}, "only for 'adam'"),
        ({"compare": "methods", "corner_seeds": 9}, "corner_seeds = 9: it has no meaning"),
        ({"compare": "methods", "label_noises": (0.1,)}, "only for 'grid'"),
        ({"compare": "methods", "methods": ("fesh",)}, "Did you mean 'fresh'"),
        ({"compare": "methods", "methods": ("fresh", "Fresh")}, "is the same as 'fresh'"),
        ({"compare": "methods", "methods": ("l2+redo", "redo+l2:l2_strength=0.1")}, "is the same as 'l2+redo'"),
        ({"compare": "methods", "methods": ("fresh+head_reset",)}, "'head_reset' acts before a second phase"),
        ({"compare": "methods", "methods": ("fresh+fresh",)}, "methods = 'fresh+fresh': 'fresh' is given twice"),
        ({"compare": "methods", "base": "shrink_perturb"}, "base = 'shrink_perturb': 'shrink_perturb' acts before"),
        ({"compare": "methods", "base": "l2+l2"}, "WarmStartSettings.base = 'l2+l2': a method is given twice"),
        ({"compare": "methods", "base": "l2:l2_strength=0.1"}, "base = 'l2:l2_strength=0.1': accepted are names"),
        ({"compare": "adam", "adam_eps": 0.1}, "adam_eps = 0.1: it has no meaning"),
        ({"compare": "adam", "adam_betas": (0.5, 0.5)}, "give WarmStartSettings.beta1s"),
        ({"compare": "methods", "methods": ("fresh:momentum=0.9",)}, "no setting of 'plain'"),
        ({"compare": "methods", "methods": ("plain+ema",)}, "'plain' means none"),
        ({"compare": "methods", "base": "l3"}, "base = 'l3'"),
        ({"compare": "methods", "base": "ema"}, "leave 'ema' out"),
        ({"compare": "methods", "momentum": 1.0}, "momentum = 1.0"),
        ({"compare": "adam", "beta2s": (1.0,)}, "beta2s = 1.0"),
        ({"compare": "adam", "epsilons": (-1.0,)}, "epsilons = -1.0"),
        ({"evaluate_every": 0}, "evaluate_every = 0"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(chosen: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=re.escape(told)):
        WarmStartSettings(**chosen)


@pytest.mark.parametrize("data", DATA_SETS)
def test_number_of_seeds_is_the_papers_for_the_data_set(data: str) -> None:
    seeds = 3 if data == "tiny-imagenet" else 5
    assert WarmStartSettings(data=data).resolved().seeds == seeds
    assert {spec.settings["seed"] for spec in planned(data=data, first_seed=2)} == set(range(2, 2 + seeds))
    assert len(planned(data=data, seeds=1, corner_seeds=2)) == 36 + 4
    with pytest.raises(SettingError, match=f"{seeds} <= corner_seeds"):
        WarmStartSettings(data=data, corner_seeds=seeds - 1)


def test_settings_that_change_nothing_are_told() -> None:
    def told(**settings: Any) -> list[str]:
        chosen = WarmStartSettings(compare="methods", seeds=1, **settings).resolved()
        return unused_settings(chosen, warm_start.trials(chosen))

    assert told(momentum=0.5, reset_interval=2, subset_ratio=0.5, label_noise=0.1, warm_epochs=3) == []
    assert told(methods=("ema", "fresh"), momentum=0.5, warm_epochs=3) == []
    [interval] = told(methods=("ema",), reset_interval=2)
    assert interval.startswith("--reset-interval = 2 changes nothing")
    fresh = told(methods=("fresh", "fresh+l2"), momentum=0.5, label_noise=0.1, warm_epochs=3)
    assert [sentence.partition(" = ")[0] for sentence in fresh] == ["--momentum", "--label-noise", "--warm-epochs"]


# --- trials


def test_fresh_is_the_second_phase_alone_from_the_initial_weights() -> None:
    data = load_data(DataConfig("digits", train_limit=200))
    spec = planned(compare="methods", methods=("fresh+l2",), epochs=3, seeds=1, first_seed=4, evaluate_every=2)[0]
    trial = VisionTrial(spec.config, data.to_arrays())
    report = trial.advance()
    assert report.progress == 1

    second = make_stream(data.train_labels, 10, WarmStartConfig(epochs=3), seed=4)[1]
    net = make_model(ModelConfig("mlp"), shape=data.shape, num_classes=10, seed=4)
    alone = Stream("second phase", (replace(second, index=0),))
    training = TrainingConfig(batch_size=32)
    expected = fit(net, data, alone, method=MethodConfig("l2"), training=training, seed=4)
    assert report.curves["epoch"] == expected[1:]  # tested after epochs 2 and 3
    trained = trial.strategy.model.state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(trained[name], value), name


STUDY = (
    "--compare methods --methods plain fresh shrink_perturb hare_tortoise --momentum 0.5 --reset-interval 2 "
    "--subset-ratio 0.5 --label-noise 0.2 --epochs 4 --train-limit 200 --seeds 2 --evaluate-every 3 "
    "--indicators-every 100 --indicators weights --pack off"
)


@pytest.fixture(scope="module")
def study(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small comparison of methods."""
    directory = tmp_path_factory.mktemp("warm_start") / "study"
    assert warm_start.main([*STUDY.split(), "--results-dir", str(directory)]) == 0
    return directory


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("plain", MethodConfig("plain")),
        ("fresh", MethodConfig("plain")),
        ("shrink_perturb", MethodConfig("shrink_perturb")),
        ("hare_tortoise-m0.5-r2e", MethodConfig("hare_tortoise", momentum=0.5, reset_interval=2)),
    ],
)
def test_trials_are_those_of_the_plain_loop(study: Path, name: str, method: MethodConfig) -> None:
    config = WarmStartConfig(subset_ratio=0.5, label_noise=0.2, epochs=4, fresh=name == "fresh")
    indicators = IndicatorConfig(every=100, names=("weights",))
    for seed in (0, 1):
        found = rows(study, f"warm_start-{name}-seed{seed}")
        expected = plain_loop(config, method, seed=seed, train_limit=200, evaluate_every=3, indicators=indicators)
        assert found == expected
        # Tested after every third epoch of a phase, and its last.
        first = [(3, 1, 3), (6, 1, 6), (8, 1, 8)]
        measured = [(3, 1, 3), (4, 1, 4)] if name == "fresh" else [*first, (11, 2, 3), (12, 2, 4)]
        assert [(row["step"], row["phase"], row["epoch"]) for row in found] == measured
        # Figure 8: at the end of warm-starting and at the end of all, nowhere else.
        assert ["weight_magnitude" in row for row in found] == [row["epoch"] in (4, 8) for row in found]


def test_results_have_what_the_papers_tables_need(study: Path) -> None:
    found = table(study)
    assert [row["method"] for row in found] == [
        m for m in ("plain", "fresh", "shrink_perturb", "hare_tortoise") for _ in "12"
    ]
    for row in found:
        epochs = rows(study, row["id"])
        assert float(row["final_accuracy"]) == epochs[-1]["test_accuracy"]
        assert float(row["final_train_accuracy"]) == epochs[-1]["train_accuracy"]
        assert float(row["first_accuracy"]) == [e for e in epochs if e["phase"] == 1][-1]["test_accuracy"]
        assert (row["subset_ratio"], row["label_noise"]) == (("", "") if row["method"] == "fresh" else ("0.5", "0.2"))
    assert load_study(study).problems == ()
    text = (study / "table.md").read_text()
    assert all(label in text for label in ("Plain", "Fresh", "Hare & Tortoise m=0.5 r=2"))


@pytest.mark.slow
def test_resuming_a_study_runs_what_is_missing_and_nothing_else(study: Path) -> None:
    before = all_reports(study)
    trial = "warm_start-fresh-seed1"
    kept = [reports(study, name) for name in before if name != trial]
    for path in (study / "trials" / trial).iterdir():
        path.unlink()
    assert warm_start.main(["--resume", str(study)]) == 0
    assert all_reports(study) == before
    assert [reports(study, name) for name in before if name != trial] == kept
