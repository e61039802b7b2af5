"""A study says how a GPU computes: its flags are in each trial's configuration, and hold while a trial trains."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import Any

import pytest
import torch

from ht_ray.errors import SettingError
from tune_configs import atari100k, continual, continual_rl
from tune_configs.atari100k import AtariSettings, BBFSettings
from tune_configs.atari_trial import AtariTrial
from tune_configs.continual import ContinualSettings
from tune_configs.continual_rl import ContinualRLSettings
from tune_configs.continual_rl_trial import ContinualRLTrial
from tune_configs.trial_numerics import computed_as_set
from tune_configs.vision_trial import VisionPack, VisionTrial

CHOSEN = {"tf32": "all", "cudnn_benchmark": True}
STUDIES = pytest.mark.parametrize(
    ("settings", "trials"),
    [
        (ContinualSettings, continual.trials),
        (AtariSettings, atari100k.trials),
        (BBFSettings, atari100k.trials),
        (ContinualRLSettings, continual_rl.trials),
    ],
)


def present() -> tuple[bool, ...]:
    cudnn = torch.backends.cudnn
    products = torch.backends.cuda.matmul
    return cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark, torch.are_deterministic_algorithms_enabled()


@STUDIES
def test_what_is_chosen_is_in_the_study_and_in_every_trial(settings: Any, trials: Any) -> None:
    usual = trials(settings().resolved())
    assert not any("numerics" in spec.config for spec in usual)  # studies of before there was a choice go on
    chosen = settings(**CHOSEN).resolved()
    assert {name: asdict(chosen)[name] for name in CHOSEN} == CHOSEN
    expected = {"tf32": "all", "benchmark": True, "deterministic": False}
    planned = trials(chosen)
    assert all(spec.config["numerics"] == expected for spec in planned)
    assert settings.from_json(json.loads(json.dumps(asdict(chosen)))) == chosen
    older = {name: value for name, value in asdict(settings().resolved()).items() if name not in CHOSEN}
    del older["deterministic"]
    assert settings.from_json(json.loads(json.dumps(older))) == settings().resolved()


@STUDIES
def test_what_cannot_be_is_refused(settings: Any, trials: Any) -> None:
    with pytest.raises(SettingError, match=r"tf32 = 'al': accepted are 'none', 'convolutions', 'all'\. Did you mean"):
        settings(tf32="al")
    with pytest.raises(SettingError, match="cudnn_benchmark = True with deterministic = True"):
        settings(cudnn_benchmark=True, deterministic=True)


class Trial:
    def __init__(self, **config: Any) -> None:
        self.config = config

    @computed_as_set
    def advance(self) -> tuple[bool, ...]:
        return present()


def test_it_holds_while_a_trial_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = present()
    assert Trial().advance() == before
    assert Trial(numerics={"tf32": "none", "benchmark": True, "deterministic": False}).advance() == (
        *(False, False, True, False),
    )
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    determined = {"tf32": "all", "benchmark": False, "deterministic": True}
    assert Trial(numerics=determined).advance() == (True, True, False, True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert present() == before


@pytest.mark.parametrize("trial", [AtariTrial, VisionTrial, VisionPack, ContinualRLTrial])
def test_every_trial_trains_so(trial: type[Any]) -> None:
    assert trial.advance.__wrapped__


def test_bbf_is_in_bf16_on_a_gpu_unless_the_study_says_otherwise() -> None:
    def precisions(settings: Any) -> set[str]:
        return {spec.config["precision"] for spec in atari100k.trials(settings.resolved())}

    assert (precisions(BBFSettings()), precisions(BBFSettings(precision="fp32"))) == ({"auto"}, {"fp32"})
    assert precisions(AtariSettings()) == {"fp32"}
    assert BBFSettings().differs == BBFSettings(precision="fp32").differs == []


def test_a_game_beside_the_updates_is_another_protocol_and_said() -> None:
    plain, beside = AtariSettings(), AtariSettings(overlap=True)
    assert (plain.differs, beside.differs) == ([], ["overlap = True instead of False"])
    configs = [atari100k.trials(settings.resolved())[0].config for settings in (plain, beside)]
    assert "overlap" not in configs[0] and configs[1]["overlap"] is True
    config = {**configs[1], "game": "Pong", "steps": 3, "evaluation_episodes": 1}
    assert AtariTrial(config).run._overlap
    assert not AtariTrial({**configs[0], "game": "Pong"}).run._overlap
