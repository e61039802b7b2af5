"""Published settings of methods: whose they are, what goes before them, where none are known."""

from __future__ import annotations

import pytest

from ht_ray.errors import SettingError
from ht_ray.methods import METHODS
from ht_ray.methods.registry import flat_names
from tune_configs.continual import ContinualSettings, trials
from tune_configs.prepare import unpublished
from tune_configs.published import PUBLISHED, published_settings


@pytest.mark.parametrize("data", PUBLISHED)
@pytest.mark.parametrize("stream", ["warm_start", "continual"])
def test_they_are_accepted_settings_of_their_methods(data: str, stream: str) -> None:
    settings = ContinualSettings(data=data, data_root="/tmp", stream=stream, settings="published")
    known = 0
    for name, cls in METHODS.items():
        values = published_settings(name, data, stream)
        assert set(values) <= {*flat_names(cls), "momentum"}
        known += bool(values)
        flat = settings.method_config(name).flat
        assert {setting: flat[setting] for setting in values} == values
    assert known >= (3 if data == "mnist" else 8)


def test_values_depend_on_data_and_stream() -> None:
    warm = ContinualSettings(data="cifar10", stream="warm_start", settings="published")
    stream = ContinualSettings(data="cifar10", settings="published")
    assert [own.method_config("redo").flat["redo_threshold"] for own in (warm, stream)] == [0.5, 0.05]
    both = stream.method_config("hare_tortoise+redo").flat
    assert (both["momentum"], both["reset_interval"], both["redo_threshold"]) == (0.999, 10, 0.05)


def test_flags_and_settings_behind_a_name_go_before() -> None:
    settings = ContinualSettings(data="cifar10", settings="published", redo_threshold=0.3, momentum=0.9)
    assert settings.method_config("redo").flat["redo_threshold"] == 0.3
    assert settings.method_config("hare_tortoise").flat["momentum"] == 0.9
    assert settings.method_config("regenerative:regenerative_strength=0.5").flat["regenerative_strength"] == 0.5


def test_default_is_the_package_s() -> None:
    assert ContinualSettings(data="cifar10").method_config("redo").flat["redo_threshold"] == 0.025


@pytest.mark.parametrize("changes", [{"data": "digits"}, {"data": "cifar10", "model": "vgg16"}])
def test_other_data_and_networks_are_refused(changes: dict[str, str]) -> None:
    with pytest.raises(SettingError, match=r"settings = 'published': none are known for .* cifar10 with resnet18"):
        ContinualSettings(settings="published", **changes)


def test_methods_without_any_are_named() -> None:
    settings = ContinualSettings(
        data="cifar10", settings="published", methods=("plain", "upgd", "redo", "ema"), seeds=1
    )
    (sentence,) = unpublished(settings, trials(settings))
    assert "none are known of upgd, ema, which" in sentence
