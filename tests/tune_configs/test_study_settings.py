"""Planned trials of the studies, and the settings behind them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ht_ray.errors import SettingError
from ht_ray.methods import METHODS, MethodConfig
from ht_ray.sweep import Study, SweepConfig
from ht_ray.vision import DATA_SETS, ContinualConfig, ModelConfig, TrainingConfig
from tune_configs import ablation, continual
from tune_configs.ablation import AblationSettings
from tune_configs.atari100k import AtariSettings, BBFSettings
from tune_configs.continual import ContinualSettings
from tune_configs.flags import flags_of
from tune_configs.prepare import device_warnings, method_warnings, schedule_warnings, unused_settings
from tune_configs.settings import PRESETS, VisionSettings
from tune_configs.trials import label_of
from tune_configs.vision_trial import plain_method, stream_of, trial_config
from tune_configs.warm_start import WarmStartSettings

# arXiv 2406.02596, appendix A.2 and table 3: network, learning rate, weight decay, batch; figure 6: augmentation.
PAPER = {
    "mnist": ("mlp", 1e-3, 1e-4, 256, "none"),
    "cifar10": ("resnet18", 1e-3, 1e-5, 256, "crop_flip"),
    "cifar100": ("vit_tiny", 3e-3, 0.05, 256, "crop_flip"),
    "tiny-imagenet": ("vgg16", 1e-3, 1e-4, 256, "crop_flip"),
}


def planned(settings: AblationSettings | ContinualSettings) -> tuple[Any, ...]:
    resolved = settings.resolved()
    return ablation.trials(resolved) if isinstance(resolved, AblationSettings) else continual.trials(resolved)


@pytest.mark.parametrize("data", PAPER)
def test_presets_are_the_papers(data: str) -> None:
    config = planned(ContinualSettings(data=data))[0].config
    training = config["training"]
    found = (config["model"]["name"], *(training[name] for name in ("learning_rate", "weight_decay", "batch_size")))
    assert (*found, training["augment"]) == PAPER[data]
    assert (training["betas"], training["warmup_ratio"], training["clip"]) == ((0.9, 0.999), 0.1, 0.5)
    assert training["fresh_optimizer"]
    assert config["stream"]["buffer_size"] == 5000


def test_digits_have_a_buffer_smaller_than_themselves() -> None:
    assert planned(ContinualSettings())[0].config["stream"]["buffer_size"] == 200


def test_warm_starts_are_compared_by_their_end() -> None:
    assert AblationSettings(stream="warm_start").metric == "final_accuracy"
    assert AblationSettings().metric == "average_accuracy"


def test_every_data_set_has_a_preset() -> None:
    assert set(PRESETS) == set(DATA_SETS)


@pytest.mark.parametrize("data", DATA_SETS)
def test_warm_start_has_no_augmentation_unless_it_is_asked_for(data: str) -> None:
    assert AblationSettings(data=data, stream="warm_start").resolved().augment == "none"
    assert AblationSettings(data=data, stream="warm_start", augment="crop").resolved().augment == "crop"


def test_a_flag_goes_before_the_preset() -> None:
    settings = AblationSettings(data="cifar10", model="vgg16", learning_rate=0.1, weight_decay=0.0, batch_size=8)
    config = planned(settings)[0].config
    assert config["model"]["name"] == "vgg16"
    assert [config["training"][n] for n in ("learning_rate", "weight_decay", "batch_size")] == [0.1, 0.0, 8]


def test_ablation_plans_the_baselines_and_the_grid() -> None:
    specs = planned(AblationSettings(momenta=(0.9, 0.99), reset_intervals=(1, 5), seeds=2, first_seed=3))
    assert [spec.id for spec in specs if spec.settings["seed"] == 3] == [
        "full-plain-seed3",
        "full-ema-m0.9-seed3",
        "full-ema-m0.99-seed3",
        "full-shrink_perturb-seed3",
        "full-head_reset-seed3",
        "full-hare_tortoise-m0.9-r1e-seed3",
        "full-hare_tortoise-m0.9-r5e-seed3",
        "full-hare_tortoise-m0.99-r1e-seed3",
        "full-hare_tortoise-m0.99-r5e-seed3",
    ]
    assert [spec.settings["seed"] for spec in specs] == [3, 4] * 9
    assert {spec.config["seed"] for spec in specs} == {3, 4}
    last = specs[-1]
    assert last.label == "Hare & Tortoise m=0.99 r=5"
    assert last.settings == {
        "data": "digits",
        "model": "mlp",
        "stream": "continual",
        "access": "full",
        "method": "hare_tortoise",
        "momentum": 0.99,
        "reset_interval": 5,
        "reset_unit": "epochs",
        "seed": 4,
    }
    assert (last.config["method"]["momentum"], last.config["method"]["reset_interval"]) == (0.99, 5)
    assert specs[0].settings["momentum"] is None
    assert specs[2].settings["reset_interval"] is None


def test_continual_plans_access_modes_and_methods() -> None:
    settings = ContinualSettings(methods=("plain", "hare-tortoise + head-reset"), seeds=1, reset_unit="steps")
    specs = planned(settings)
    assert [spec.id for spec in specs] == [
        "full-plain-seed0",
        "full-hare_tortoise+head_reset-m0.99-r5s-seed0",
        "buffer-plain-seed0",
        "buffer-hare_tortoise+head_reset-m0.99-r5s-seed0",
    ]
    assert specs[1].label == specs[3].label == "Hare & Tortoise + Head Reset m=0.99 r=5 steps"
    assert [spec.config["stream"]["access"] for spec in specs] == ["full", "full", "buffer", "buffer"]
    # What the results and the workers call it is one and the same.
    assert {spec.settings["method"] for spec in specs} == {"plain", "hare_tortoise+head_reset"}


def test_warm_start_has_no_access() -> None:
    for settings in (AblationSettings(stream="warm_start"), ContinualSettings(stream="warm_start")):
        specs = planned(settings)
        assert {spec.settings["access"] for spec in specs} == {None}
        assert all(spec.id.startswith("warm_start-") for spec in specs)
        assert all("access" not in spec.config["stream"] for spec in specs)
        assert len({spec.id for spec in specs}) == len(specs)


momenta = st.lists(st.floats(0, 1, exclude_max=True).map(lambda m: round(m, 9)), min_size=1, max_size=3, unique=True)
intervals = st.lists(st.integers(1, 500), min_size=1, max_size=3, unique=True)


@given(
    momenta=momenta.filter(lambda values: 1.0 not in values),
    intervals=intervals,
    baselines=st.lists(st.sampled_from(["plain", "ema", "shrink_perturb", "head_reset"]), unique=True),
    seeds=st.integers(1, 3),
    stream=st.sampled_from(["continual", "warm_start"]),
)
def test_ids_are_unique_and_stay_the_same(
    momenta: list[float], intervals: list[int], baselines: list[str], seeds: int, stream: str
) -> None:
    settings = AblationSettings(
        momenta=tuple(momenta),
        reset_intervals=tuple(intervals),
        baselines=tuple(baselines),
        seeds=seeds,
        stream=stream,
    )
    specs = planned(settings)
    Study(name="ablation", factory="a:b", trials=specs, metric="m")  # refuses ids that are given twice
    assert specs == planned(settings)
    groups: dict[str, set[int]] = {}
    for spec in specs:
        # A label and a seed name one trial, or the report would average different settings.
        assert spec.config["seed"] not in groups.setdefault(spec.label, set())
        groups[spec.label].add(spec.config["seed"])
    grid = len(momenta) * len(intervals)
    other = sum(len(momenta) if name == "ema" else 1 for name in baselines)
    assert len(groups) == grid + other


@pytest.mark.parametrize("number", [0.9999999, 0.99999999])
def test_label_tells_momenta_near_one_apart(number: float) -> None:
    assert str(number) in label_of(MethodConfig("ema", momentum=number))


def test_configs_rebuild_what_was_planned_after_json() -> None:
    settings = ContinualSettings(
        methods=tuple(METHODS),
        hidden=(7, 5),
        clip=0.25,
        toward="fresh",
        shrink_perturb_noise=0.1,
        shrink_perturb_perturb=0.2,
        seeds=1,
    )
    for spec in planned(settings):
        config = json.loads(json.dumps(spec.config))
        method = trial_config(config).method
        assert plain_method(method) == spec.config["method"]
        assert method == settings.method_config(method.name, momentum=0.99, reset_interval=5)
        if method.name == "shrink_perturb":
            assert (method.flat["shrink_perturb_noise"], method.flat["shrink_perturb_perturb"]) == (0.1, 0.2)
        assert ModelConfig(**{**config["model"], "hidden": tuple(config["model"]["hidden"])}).hidden == (7, 5)
        assert TrainingConfig(**config["training"]).clip == 0.25


@pytest.mark.parametrize(
    "settings",
    [
        AblationSettings(),
        AblationSettings(data="tiny-imagenet", stream="warm_start", momenta=(0.5,), warm_epochs=7, subset_ratio=1.0),
        ContinualSettings(hidden=(3,), methods=("hare_tortoise+head_reset",), noise="0.1,0", phases=2, first_seed=4),
    ],
)
def test_settings_survive_json(settings: VisionSettings) -> None:
    for kept in (settings, settings.resolved()):
        assert type(settings).from_json(json.loads(json.dumps(asdict(kept)))) == kept
    assert settings.resolved().resolved() == settings.resolved()


def test_settings_of_another_study_are_refused() -> None:
    with pytest.raises(SettingError, match=r"momenta.*reset_intervals.*another script"):
        ContinualSettings.from_json(asdict(AblationSettings()))


def test_data_of_a_job_are_kept_relative_to_its_working_directory(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    for folder in (copy, tmp_path):
        (folder / "table.parquet").touch()
    monkeypatch.chdir(copy)
    settings = ContinualSettings(data="table.parquet", data_root="images", model="mlp").resolved()
    assert (settings.data, settings.data_root) == ("table.parquet", "images")
    monkeypatch.chdir(tmp_path)
    settings = ContinualSettings(data="table.parquet", data_root="images", model="mlp").resolved()
    assert (settings.data, settings.data_root) == (str(tmp_path / "table.parquet"), str(tmp_path / "images"))


def test_data_root_is_kept_as_an_absolute_path(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert AblationSettings(data="mnist", data_root="here").resolved().data_root == str(tmp_path / "here")


@pytest.mark.parametrize(
    ("given_settings", "told"),
    [
        ({"stream": "warm_start", "phases": 3}, "phases = 3.*no meaning"),
        ({"stream": "warm_start", "noise": "none"}, "noise = 'none'"),
        ({"stream": "warm_start", "buffer_size": 10}, "buffer_size = 10"),
        ({"stream": "warm_start", "access": "buffer"}, "access = 'buffer'"),
        ({"label_noise": 0.3}, "label_noise = 0.3.*no meaning"),
        ({"subset_ratio": 0.3}, "subset_ratio = 0.3"),
        ({"warm_epochs": 3}, "warm_epochs = 3"),
        ({"data": "cifar10", "hidden": (50,)}, "hidden.*'mlp' only"),
    ],
)
def test_settings_without_a_meaning_are_refused(given_settings: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        AblationSettings(**given_settings)


def test_every_setting_has_a_help_text() -> None:
    for config in (VisionSettings, AblationSettings, ContinualSettings, WarmStartSettings, AtariSettings, BBFSettings):
        flags = flags_of(config, "Study")
        assert {flag.name for flag in flags} >= {field.name for field in fields(config)} - {
            "training_steps",
            "method_settings",
            "versions",
        }
        for flag in flags:
            assert len(flag.help) > 8, f"{config.__name__}.{flag.name} has no text for --help"


def test_stream_of_a_trial_is_the_one_its_settings_name() -> None:
    labels = torch.arange(200) % 10
    spec = planned(ContinualSettings(phases=2, noise="0.4,0.1", access=("buffer",), buffer_size=30, seeds=1))[0]
    stream = stream_of(spec.config, labels, 10)
    assert [(len(phase), phase.noise, phase.epochs) for phase in stream] == [(100, 0.4, 20), (130, 0.1, 20)]
    assert ContinualConfig(**{k: v for k, v in spec.config["stream"].items() if k != "kind"}).access == "buffer"
    warm = planned(AblationSettings(stream="warm_start", epochs=3, seeds=1))[0]
    assert [(len(phase), phase.epochs) for phase in stream_of(warm.config, labels, 10)] == [(20, 30), (200, 3)]


def test_settings_that_can_hardly_work_are_told_once() -> None:
    settings = AblationSettings(momenta=(0.5, 0.999), reset_intervals=(2,), baselines=("plain", "ema"), seeds=3)
    sentences = schedule_warnings(planned(settings), torch.arange(500) % 10, 10)
    assert len(sentences) == 3
    assert sentences[0].startswith("EMA m=0.999 (10 phases, first 1 of 10): Tortoise: momentum = 0.999 has a half-life")
    assert sentences[1].startswith("Hare & Tortoise m=0.999 r=2 (10 phases, first 1 of 10): Tortoise: momentum = 0.999")
    assert sentences[2].startswith("Hare & Tortoise m=0.999 r=2 (10 phases, first 1 of 10): Tortoise: the hare is")


def test_methods_that_would_never_act_are_told() -> None:
    settings = ContinualSettings(
        methods=("redo", "redo:redo_unit=steps", "optimizer_reset", "hare_tortoise"),
        optimizer_reset_interval=9,
        access=("full",),
        phases=3,
        epochs=4,
        momentum=0.5,
        seeds=2,
    )
    told = schedule_warnings(planned(settings), torch.arange(500) % 10, 10)
    assert [sentence.partition(":")[0] for sentence in told] == [
        "ReDo (3 phases, first 1 of 3)",
        "Optimiser Reset (3 phases, first 1 of 3)",
        "Hare & Tortoise m=0.5 r=5 (3 phases, first 1 of 3)",
    ]
    assert "redo_interval = 5 epochs, and a phase has 4: it never acts" in told[0]
    assert "optimizer_reset_interval = 9 epochs" in told[1]
    assert "reset_interval = 5 epochs, and a phase has 4" in told[2]


def test_settings_that_change_nothing_are_told() -> None:
    def told(**settings: Any) -> list[str]:
        given_settings = ContinualSettings(seeds=1, **settings)
        return unused_settings(given_settings, planned(given_settings))

    assert told() == []
    assert told(methods=("l2", "plain"), l2_strength=0.5, indicators_every=2, indicators=("probe",)) == []
    assert told(methods=("l2:l2_strength=1", "shrink_perturb"), shrink_perturb_perturb=0.1) == []
    [strength] = told(methods=("plain", "redo"), l2_strength=0.5)
    assert strength.startswith("--l2-strength = 0.5 changes nothing")
    [momentum] = told(methods=("plain", "l2"), momentum=0.5)
    assert momentum.startswith("--momentum = 0.5 changes nothing")
    [perturb] = told(methods=("plain",), shrink_perturb_perturb=0.1)
    assert perturb.startswith("--shrink-perturb-perturb = 0.1 changes nothing")
    [noise] = told(methods=("plain",), shrink_perturb_noise=0.1)
    assert noise.startswith("--shrink-perturb-noise = 0.1 changes nothing")
    [indicators] = told(indicators=("probe",))
    assert "--indicators-every" in indicators


def test_an_idle_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(share: float = 0.0, **settings: Any) -> list[str]:
        return device_warnings(ContinualSettings(**settings), SweepConfig(gpus_per_trial=share))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "--gpus-per-trial" in told()[0]
    assert told(share=0.5) == told(device="cpu") == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert told() == []


def test_a_method_can_have_settings_of_its_own() -> None:
    settings = ContinualSettings(
        methods=("l2", "l2:l2_strength=0.01", "redo:redo_threshold=0.1,redo-unit=steps", "hare_tortoise:momentum=0.9"),
        l2_strength=0.5,
        seeds=1,
    )
    specs = planned(settings)[:4]
    assert [spec.label for spec in specs] == [
        "L2",
        "L2 (l2_strength=0.01)",
        "ReDo (redo_threshold=0.1, redo_unit=steps)",
        "Hare & Tortoise m=0.9 r=5",
    ]
    assert [spec.config["method"].get("l2_strength") for spec in specs] == [0.5, 0.01, None, None]
    assert trial_config(specs[2].config).method.redo_threshold == 0.1
    assert specs[2].config["method"]["redo_unit"] == "steps"
    assert specs[3].config["method"]["momentum"] == 0.9
    assert len({spec.id for spec in planned(settings)}) == len(planned(settings))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("l2:l2_stength=1", "Did you mean 'l2_strength'"),
        ("l2:redo_interval=1", "'redo_interval' is no setting of 'l2', which has l2_strength, l2_coupling"),
        ("plain:momentum=0.9", "no setting of 'plain', which has none"),
        ("l2:", "no setting=value"),
        ("l2:l2_strength", "no setting=value"),
        ("l2:l2_strength=1,l2_strength=2", "given twice"),
        ("l2:l2_strength=-1", "l2_strength = -1"),
        ("l2:l2_strength=much", "l2_strength = 'much'"),
        ("adam:adam_betas=0.9", "adam_betas"),
        ("lt:l2_strength=1", "Did you mean 'l2'"),
    ],
)
def test_wrong_settings_of_its_own_are_refused(method: str, message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        ContinualSettings(methods=("plain", method))


def test_the_same_method_is_known_however_it_is_written() -> None:
    for twice in ("l2:l2_strength=0.1", "L2"):
        with pytest.raises(SettingError, match="is the same as 'l2'"):
            ContinualSettings(methods=("l2", twice))


def test_augmentation_that_all_have_is_told() -> None:
    for chosen, told in (({"augment": "crop"}, True), ({}, False)):
        specs = planned(ContinualSettings(methods=("plain", "augment"), seeds=1, **chosen))
        sentences = method_warnings(specs, (1, 8, 8), 10)
        assert any("Augmentation: every method of the study is augmented" in text for text in sentences) is told


def test_the_head_can_have_hidden_layers() -> None:
    settings = ContinualSettings(methods=("plasticity_injection",), head_hidden=(32,), seeds=1)
    assert planned(settings)[0].config["model"]["head_hidden"] == (32,)
    assert method_warnings(planned(settings), (1, 8, 8), 10) == []
    linear = planned(ContinualSettings(methods=("plasticity_injection",), seeds=1))
    assert len(method_warnings(linear, (1, 8, 8), 10)) == 1
