"""Settings that are tried where methods are tuned: what they are, what goes before them, which studies have them."""

from __future__ import annotations

import pytest

from ht_ray.errors import SettingError
from ht_ray.methods import METHODS, MethodConfig
from ht_ray.methods.registry import tried_settings
from tune_configs.ablation import AblationSettings
from tune_configs.continual import ContinualSettings, trials
from tune_configs.vision_trial import trial_config
from tune_configs.warm_start import WarmStartSettings
from tune_configs.warm_start import trials as warm_start_trials


def tuned(*methods: str, **changes: object) -> ContinualSettings:
    return ContinualSettings(settings="tuned", methods=methods, seeds=1, access=("full",), **changes).resolved()


def labels(settings: ContinualSettings) -> list[str]:
    return [spec.label for spec in trials(settings)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("online", [False, True])
def test_each_method_has_at_most_four_that_differ_and_are_accepted(method: str, online: bool) -> None:
    tried = tried_settings(method, online=online)
    assert len(tried) <= 4
    configs = [MethodConfig(method, **values) for values in tried]
    assert len({str(config.flat) for config in configs}) == len(tried)
    for config, values in zip(configs, tried, strict=True):
        assert {name: config.flat[name] for name in values} == values


def test_each_of_them_is_a_trial_and_plain_training_is_one() -> None:
    strengths = ["L2 (l2_strength=0.01)", "L2 (l2_strength=0.1)", "L2 (l2_strength=0.3)", "L2 (l2_strength=1.0)"]
    assert labels(tuned("plain", "l2")) == ["Plain", *strengths]
    assert labels(tuned("hare_tortoise+l2")) == [
        f"Hare & Tortoise + L2 m={momentum} r={interval}" for momentum in (0.9, 0.99) for interval in (1, 5)
    ]


def test_where_tasks_are_one_epoch_intervals_are_steps() -> None:
    assert labels(tuned("hare_tortoise", stream="permuted")) == [
        f"Hare & Tortoise m={momentum} r={interval} steps" for momentum in (0.9, 0.99) for interval in (30, 300)
    ]


def test_what_was_given_stays() -> None:
    assert labels(tuned("l2:l2_strength=0.5")) == ["L2 (l2_strength=0.5)"]
    assert labels(tuned("l2", l2_strength=0.5)) == ["L2"]
    assert trial_config(trials(tuned("l2", l2_strength=0.5))[0].config).method.l2_strength == 0.5
    assert labels(tuned("hare_tortoise", momentum=0.5)) == [f"Hare & Tortoise m=0.5 r={r}" for r in (1, 5)]


def test_an_interval_that_was_given_keeps_its_unit() -> None:
    (first, second) = trials(tuned("redo", redo_interval=3))
    for spec in (first, second):
        own = trial_config(spec.config).method
        assert (own.redo_interval, own.redo_unit) == (3, "epochs")


def test_the_same_setting_is_run_once() -> None:
    assert len(labels(tuned("l2", "l2:l2_strength=0.3"))) == 4


def test_a_tenth_is_held_out_to_choose_on() -> None:
    assert (tuned("l2").validation, tuned("l2").metric) == (0.1, "average_val_accuracy")
    assert tuned("l2", validation=0.2).validation == 0.2
    # There is nothing to validate on where a task's own samples are memorized.
    assert tuned("l2", stream="random_labels").validation == 0
    assert tuned("l2", stream="bit_flipping").validation == 0
    assert ContinualSettings(methods=("l2",)).resolved().validation == 0


def test_warm_starts_compare_tuned_methods_and_grids_do_not() -> None:
    settings = WarmStartSettings(settings="tuned", compare="methods", methods=("fresh+l2", "l2", "plain"), seeds=1)
    found = [spec.label for spec in warm_start_trials(settings.resolved())]
    assert found[:2] == ["Fresh + L2 (l2_strength=0.01)", "Fresh + L2 (l2_strength=0.1)"]
    assert len(found) == 9
    for refused in (lambda: WarmStartSettings(settings="tuned"), lambda: AblationSettings(settings="tuned")):
        with pytest.raises(SettingError, match=r"settings = 'tuned': this study has its own grid"):
            refused()
