"""Searches of the ablation: what is planned, what is refused, and weights that change their settings."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from ht_ray.errors import SettingError
from ht_ray.sweep import Search, SearchConfig, Study, TrialSpec
from ht_ray.vision import load_data
from strategies.plugins.method import MethodPlugin
from tune_configs import ablation
from tune_configs.ablation import AblationSettings
from tune_configs.vision_trial import VisionTrial

needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs ht-ray[optuna]")


def planned(**fields: Any) -> tuple[AblationSettings, tuple[TrialSpec, ...], Search | None]:
    settings = AblationSettings(baselines=("plain",), **fields).resolved()
    trials = ablation.trials(settings)
    search = settings.search_of(trials)
    # What a study refuses, it refuses here.
    Study("ablation", "module:Class", trials, settings.metric, search=search)
    return settings, trials, search


def test_a_grid_is_no_search() -> None:
    assert planned()[2] is None
    assert {name: getattr(AblationSettings(), name) for name in ("search", "scheduler", "samples", "population")} == {
        "search": "grid",
        "scheduler": "none",
        "samples": None,
        "population": None,
    }


def test_a_random_search_is_an_ordinary_study_of_drawn_settings() -> None:
    settings, trials, search = planned(search="random", samples=30, seeds=2, momenta=(0.5, 0.9, 0.99))
    assert search is None and settings.samples == 30
    drawn = [spec for spec in trials if spec.settings["method"] == "hare_tortoise"]
    assert len(drawn) == 60 and len({spec.label for spec in drawn}) == 30
    for spec in drawn:
        method = spec.config["method"]
        assert 0.5 <= method["momentum"] <= 0.99 and 1 <= method["reset_interval"] <= 10
        assert (spec.settings["momentum"], spec.settings["reset_interval"]) == (
            method["momentum"],
            method["reset_interval"],
        )
    fewer = planned(search="random", samples=10, seeds=2, momenta=(0.5, 0.9, 0.99))[1]
    assert fewer == trials[: len(fewer)]
    assert planned(search="random", samples=10, seeds=2, search_seed=1)[1] != fewer


def test_what_has_one_value_is_not_searched() -> None:
    _, trials, _ = planned(search="random", samples=5, seeds=1, momenta=(0.97,), reset_intervals=(1, 9))
    assert {spec.config["method"]["momentum"] for spec in trials[1:]} == {0.97}
    _, _, search = planned(scheduler="pbt", population=3, reset_intervals=(2,))
    assert search is not None and [parameter.column for parameter in search.parameters] == ["momentum"]


def test_asha_takes_all_but_the_baselines() -> None:
    _, trials, search = planned(scheduler="asha", seeds=2)
    assert search is not None and search.reports == 10
    assert set(search.trials) == {spec.id for spec in trials if spec.settings["method"] != "plain"}
    assert set(search.groups.values()) == {"all"}


def test_populations_have_one_seed_each_and_begin_differently() -> None:
    settings, trials, search = planned(scheduler="pbt", seeds=2)
    assert search is not None and settings.population == 8
    members = {group: search.members(group) for group in dict.fromkeys(search.groups.values())}
    assert [len(own) for own in members.values()] == [8, 8]
    specs = {spec.id: spec for spec in trials}
    for own in members.values():
        assert len({specs[name].config["seed"] for name in own}) == 1
        assert len({str(specs[name].config["method"]) for name in own}) == 8
    assert planned(scheduler="pbt")[0].seeds == 1
    assert [spec.settings["member"] for spec in trials[2:10]] == list(range(1, 9))


@needs_optuna
def test_optuna_is_given_empty_places_with_one_seed() -> None:
    settings, trials, search = planned(search="optuna", samples=3, scheduler="asha")
    assert (settings.seeds, len(trials)) == (1, 4)
    assert search is not None and search.trials == tuple(spec.id for spec in trials[1:])
    assert {(spec.settings["momentum"], spec.settings["reset_interval"]) for spec in trials[1:]} == {(None, None)}
    assert search.label.format(momentum=0.97, reset_interval=4) == "Hare & Tortoise m=0.97 r=4"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"samples": 9}, "samples = 9 changes nothing"),
        ({"scheduler": "asha", "stream": "warm_start"}, "a warm start reports twice"),
        ({"scheduler": "pbt", "stream": "warm_start"}, "a warm start reports twice"),
        ({"scheduler": "asha", "phases": 3, "grace_period": 3}, "reports 3 times"),
        ({"search": "random", "momenta": (0.9,), "reset_intervals": (3,)}, "nothing to search"),
        ({"search": "random", "samples": 30, "momenta": (0.9,), "reset_intervals": (1, 9)}, "hold about 9"),
        ({"search": "optuna", "seeds": 2}, "tries every setting with one seed"),
        ({"search": "random", "momenta": (0.9, 1.0)}, "momenta = 1.0"),
    ],
)
def test_searches_that_cannot_work_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        planned(**fields)


def test_defaults_are_those_of_the_sweep() -> None:
    assert SearchConfig().written_out() == {}
    assert AblationSettings(search="random").resolved().samples == 20


def tortoise_of(trial: VisionTrial) -> Any:
    (plugin,) = (plugin for plugin in trial.strategy.plugins if isinstance(plugin, MethodPlugin))
    return plugin.tortoise


def test_weights_go_on_with_settings_that_are_not_those_they_were_saved_with(tmp_path: Path) -> None:
    """As in a population: the state of one trial, the momentum and interval of another."""
    settings = AblationSettings(epochs=2, phases=3, train_limit=200, test_limit=100, hidden=(8,), seeds=1)
    shared = load_data(settings.data_config()).to_arrays()
    old = settings.trial_config(settings.method_config("hare_tortoise", momentum=0.9, reset_interval=1), "full", 0)
    new = copy.deepcopy(old)
    new["method"] |= {"momentum": 0.7, "reset_interval": 2}
    source = VisionTrial(old, shared)
    source.advance()
    source.save(tmp_path)
    copier = VisionTrial(new, shared)
    copier.load(tmp_path)
    was, now = tortoise_of(source), tortoise_of(copier)
    assert (now.momentum, now.reset_interval) == (0.7, 2)
    assert (now.updates, now.resets) == (was.updates, was.resets) and was.resets == 2
    # The reference changes its settings without being saved.
    was.momentum, was.reset_interval = 0.7, 2
    assert [copier.advance(), copier.advance()] == [source.advance(), source.advance()]
    assert now.resets == 4
    assert copier.rows == source.rows
