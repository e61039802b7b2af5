"""Numbers that no machine can do, in every numeric flag: refused in one line, before Ray is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import pytest

from ht_ray.agents.training import train
from ht_ray.sweep import SweepConfig
from tune_configs.ablation import AblationSettings
from tune_configs.atari100k import AtariSettings, BBFSettings
from tune_configs.continual import ContinualSettings
from tune_configs.warm_start import WarmStartSettings

ATARI = "--games pong --seeds 1 --steps 2000"
# Script, what its other flags are, and its settings.
STUDIES: dict[str, tuple[str, str, tuple[type[Any], ...]]] = {
    "ablation": ("ablation", "", (AblationSettings, SweepConfig)),
    "continual": ("continual", "", (ContinualSettings,)),
    "warm_start": ("warm_start", "", (WarmStartSettings,)),
    "atari100k": ("atari100k", ATARI, (AtariSettings,)),
    "bbf": ("atari100k", f"--agent bbf {ATARI}", (BBFSettings,)),
}
NOT_FLAGS = {"training_steps"}  # of BBF: the study's --steps
# No flag takes these ...
NEVER_WHOLE, NEVER_REAL = (str(10**20), "-1"), ("nan", "inf", "1e300", "-1")
TAKEN = ("--weight-clipping-factor inf",)
# ... and these no flag may stumble over: it takes them, or refuses them.
PERHAPS_WHOLE, PERHAPS_REAL = ("1000000000", "0"), ("1e30", "1e-300", "0.000001")


def _numeric(field: Field[Any]) -> str | None:
    kind = str(field.type)
    return "real" if "float" in kind else "whole" if "int" in kind else None


def _lines(values: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [
        # Of Adam's betas there are two.
        (
            study,
            " ".join(
                [f"--{field.name.replace('_', '-')}", *[value] * (2 if field.name in ("betas", "adam_betas") else 1)]
            ),
        )
        for study, (_, _, settings) in STUDIES.items()
        for config in settings
        for field in fields(config)
        if (kind := _numeric(field)) is not None and field.name not in NOT_FLAGS
        for value in values[kind]
    ]


def _results(lines: list[tuple[str, str]], home: Path) -> list[dict[str, Any]]:
    """Return what came of studies with arguments, in one process that starts no Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HT_RAY_"))}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("many_command_lines.py")), "--before-ray"],
        input=json.dumps([[STUDIES[study][0], [*STUDIES[study][1].split(), *given.split()]] for study, given in lines]),
        env={**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_numbers_that_no_flag_takes(tmp_path: Path) -> None:
    # Infinity is documented for the bound of weight clipping: no bound.
    lines = [line for line in _lines({"whole": NEVER_WHOLE, "real": NEVER_REAL}) if line[1] not in TAKEN]
    assert len(lines) > 400
    wrong = {
        line: found
        for line, found in zip(lines, _results(lines, tmp_path), strict=True)
        if found["code"] != 2 or found["err"].count("\n") != 1 or line[1].split()[0] not in found["err"]
    }
    assert not wrong


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_numbers_that_are_taken_or_refused(tmp_path: Path) -> None:
    lines = _lines({"whole": PERHAPS_WHOLE, "real": PERHAPS_REAL})
    wrong = {
        line: found
        for line, found in zip(lines, _results(lines, tmp_path), strict=True)
        if found["code"] not in (2, "ray") or "Traceback" in found["err"]
    }
    assert not wrong


# Study, arguments, and what the message must hold.
REFUSED = [
    ("ablation", "--cpus-per-trial 0.000001", "--cpus-per-trial = 1e-06: accepted is a number with 0.0001 <= cpus"),
    ("ablation", "--cpus-per-trial 100000", "--cpus-per-trial = 100000.0: this machine has"),
    ("ablation", "--memory-per-trial 1e9", "--memory-per-trial = 1000000000.0: this machine has"),
    ("ablation", "--resources tape=0.00001", "'tape' = 1e-05: accepted is a number with 0.0001 <="),
    ("ablation", "--hidden 1000000000", "--hidden = 1000000000: accepted is a whole number with 1 <= hidden <="),
    ("ablation", "--hidden 1000000 1000000", "--hidden = (1000000, 1000000), "),
    ("continual", "--seeds 100000000", "--seeds = 100000000: accepted is a whole number with 1 <= seeds <= 1000."),
    ("continual", "--batch-size 12345678901234567890", "--batch-size = 12345678901234567890: accepted is a whole"),
    ("continual", "--phases 1000000", "--phases = 1000000: accepted is a whole number with 1 <= phases <= 100000."),
    ("atari100k", "--replay-capacity 1000000000", "--replay-capacity = 1000000000: that takes 6.57e+03 GiB"),
]
WARNED = [
    ("continual", "--data digits --data-root /nowhere", "--data-root = '/nowhere' changes nothing"),
    ("continual", "--batch-size 1000000", "--batch-size = 1000000: there are 1437 training images"),
    ("continual", "--buffer-size 1000000", "--buffer-size = 1000000: there are 1437 training images"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    cases = [(study, arguments) for study, arguments, _ in REFUSED + WARNED]
    found = _results(cases, tmp_path_factory.mktemp("home"))
    return {arguments: outcome for (_, arguments), outcome in zip(cases, found, strict=True)}


@pytest.mark.parametrize(("study", "arguments", "words"), REFUSED)
def test_what_is_refused(study: str, arguments: str, words: str, outcomes: dict[str, dict[str, Any]]) -> None:
    found = outcomes[arguments]
    assert found["code"] == 2
    # The Atari study says first what it is.
    assert found["err"].splitlines()[-1].startswith(f"{study}.py: error: ")
    assert words in found["err"]
    assert found["err"].count("\n") == 1 + (study == "atari100k")


@pytest.mark.parametrize(("study", "arguments", "words"), WARNED)
def test_what_is_warned_of(study: str, arguments: str, words: str, outcomes: dict[str, dict[str, Any]]) -> None:
    found = outcomes[arguments]
    assert found["code"] == "ray"
    assert f"{study}.py: warning: {words}" in found["err"]


@pytest.mark.parametrize("value", [str(10**20), "-1"])
@pytest.mark.parametrize(
    "flag", [action.option_strings[0] for action in train.make_parser()._actions if action.type is int]
)
def test_numbers_of_the_plain_loop(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"--game": "pong", "--steps": "20", "--evaluation-episodes": "0", flag: value}
    code = train.main([part for pair in given.items() for part in pair])
    if flag == "--seed":  # of any length, and of any sign
        assert code == 0
        return
    message = capsys.readouterr().err
    assert code == 2
    assert message.count("\n") == 1
    assert f"{flag.removeprefix('--').replace('-', '_')} = {value}: accepted is a whole number" in message
