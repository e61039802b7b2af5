"""Numbers of the Hare & Tortoise paper (arXiv 2406.02596), and where ours may be compared with them.

The folder ``paper_values`` holds tables 4 and 5 (``warm_start_grid.csv``: mean and standard deviation over seeds,
training and test accuracy after warm-starting, by subset ratio and label noise) and the tables of appendix B.3
(``warm_start_methods.csv``: methods at ratio 0.1 and noise 0.5), as published: rounded to two and three decimals.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from ht_ray._checks import check_choice
from ht_ray.report.data.study import StudyData, TrialData

__all__ = [
    "PAPER",
    "SPLIT_OF",
    "PaperComparison",
    "PaperValue",
    "compare_with_paper",
    "grid_value",
    "method_value",
    "paper_caption",
    "paper_notes",
    "published_rows",
]

PAPER = "arXiv 2406.02596"
#: The paper's split that a summary number is a measure of.
SPLIT_OF = {"final_accuracy": "test", "final_train_accuracy": "train"}
EPOCHS = 100
#: How many reasons against showing a value are listed.
MOST_REASONS = 3

SETTINGS = {
    ("mnist", "mlp"): "mnist_mlp",
    ("cifar10", "resnet18"): "cifar10_resnet18",
    ("cifar100", "vit_tiny"): "cifar100_vit_tiny",
    ("tiny-imagenet", "vgg16"): "tiny_imagenet_vgg16",
}
#: What the paper trains each network with: learning rate and weight decay (its appendix A.2).
OPTIMISER = {
    "mnist_mlp": (1e-3, 1e-4),
    "cifar10_resnet18": (1e-3, 1e-5),
    "cifar100_vit_tiny": (3e-3, 0.05),
    "tiny_imagenet_vgg16": (1e-3, 1e-4),
}
METHODS_AT = (0.1, 0.5)
#: The rows of appendix B.3 that have other names than our methods.
_PUBLISHED_AS = {
    "plain": "warm_start",
    "augment+fresh": "fresh_augmented",
    "augment+l2+shrink_perturb": "shrink_perturb_l2_augment",
}
# What the paper says of a method; of all other settings of methods (the strength of L2) it took the best of a grid.
_OF_METHOD: dict[str, dict[str, Any]] = {
    "shrink_perturb": {"ratio": 0.8, "noise": 0.0, "toward": "initial", "perturb": 0.0},
    "redo": {"redo_interval": 5, "redo_unit": "epochs"},
}
# What studies of earlier versions did not have, and so do not record.
_LATER = {"method": {"perturb": 0.0}}


@dataclass(frozen=True)
class PaperValue:
    """A published accuracy, as a fraction; `sd` is NaN where none was published."""

    mean: float
    sd: float
    table: str


@dataclass(frozen=True)
class PaperComparison:
    """A published value, and what keeps ours from being the same measurement.

    Attributes
    ----------
    value
        The paper's value; None where it has none, or where there are `differences`.
    budget
        Epochs or data that we spent less of than the paper: ``("20 of 100 epochs",)``. The value is shown, with this.
    differences
        Settings that are not the paper's: ``("batch_size = 128 (paper: 256)",)``.
    """

    value: PaperValue | None
    budget: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """The published mean; NaN where no value is shown."""
        return math.nan if self.value is None else self.value.mean


@cache
def published_rows(name: str) -> tuple[dict[str, str], ...]:
    """Return the rows of a CSV file in ``paper_values``; lines that begin with ``#`` are comments."""
    text = (resources.files("ht_ray.report") / "data" / "paper_values" / name).read_text(encoding="utf-8")
    return tuple(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def grid_value(data: str, model: str, *, subset_ratio: float, label_noise: float, split: str) -> PaperValue | None:
    """Return the accuracy after warm-starting without a method, from table 4 (training) or 5 (test).

    Parameters
    ----------
    data, model : str
        The names that studies use: ``"mnist"``, ``"mlp"``.
    subset_ratio, label_noise : float
        The share of the data, and of wrong labels, in the first phase.
    split : {"train", "test"}
        Which accuracy.

    Examples
    --------
    >>> grid_value("cifar10", "resnet18", subset_ratio=0.1, label_noise=0.5, split="test")
    PaperValue(mean=0.69, sd=0.0067, table='table 5')
    >>> grid_value("cifar10", "vgg16", subset_ratio=0.1, label_noise=0.5, split="test") is None
    True
    """
    check_choice("grid_value: split", split, ["train", "test"])
    setting = SETTINGS.get((data, model))
    for row in published_rows("warm_start_grid.csv"):
        if (row["split"], row["setting"]) == (split, setting) and (
            math.isclose(float(row["subset_ratio"]), subset_ratio)
            and math.isclose(float(row["label_noise"]), label_noise, abs_tol=1e-9)
        ):
            table = "table 4" if split == "train" else "table 5"
            return PaperValue(float(row["accuracy_mean"]), float(row["accuracy_std"]), table)
    return None


def method_value(data: str, model: str, *, method: str, split: str) -> PaperValue | None:
    """Return the accuracy of a method at subset ratio 0.1 and label noise 0.5, from appendix B.3.

    Parameters
    ----------
    method : str
        The name that studies use, its parts in any order: ``"plain"`` (warm-starting without a method), ``"fresh"``,
        ``"fresh+augment"``, ``"shrink_perturb+l2+augment"``.

    Examples
    --------
    >>> method_value("cifar10", "resnet18", method="fresh+augment", split="test").mean
    0.924
    >>> method_value("cifar10", "resnet18", method="augment+l2+shrink_perturb", split="test").mean
    0.91
    """
    check_choice("method_value: split", split, ["train", "test"])
    name = "+".join(sorted(method.split("+")))
    key = (split, SETTINGS.get((data, model)), _PUBLISHED_AS.get(name, name))
    for row in published_rows("warm_start_methods.csv"):
        if (row["split"], row["setting"], row["method"]) == key:
            return PaperValue(float(row["accuracy"]), math.nan, "appendix B.3")
    return None


def compare_with_paper(study: StudyData, trial: TrialData, metric: str, *, grid: bool = False) -> PaperComparison:
    """Return the paper's value for a trial's measure, if it was made by the paper's protocol.

    Parameters
    ----------
    metric : str
        ``"final_accuracy"`` or ``"final_train_accuracy"``; the paper has no other.
    grid : bool, default False
        Whether tables 4 and 5 go before appendix B.3, which has plain warm-starting at ratio 0.1 and noise 0.5, too.
    """
    stream = trial.config.get("stream")
    split = SPLIT_OF.get(metric)
    if split is None or not isinstance(stream, Mapping) or stream.get("kind") != "warm_start":
        return PaperComparison(None)
    data, model = str(trial.settings.get("data")), str(trial.settings.get("model"))
    parts = set(trial.method.split("+"))
    if stream.get("fresh"):
        parts = (parts - {"plain"}) | {"fresh"}
    ratio, noise = stream.get("subset_ratio"), stream.get("label_noise")
    known: list[PaperValue | None] = []
    # A fresh network sees neither subset nor noise.
    if (ratio, noise) == METHODS_AT or "fresh" in parts:
        known.append(method_value(data, model, method="+".join(parts), split=split))
    if parts == {"plain"} and ratio is not None and noise is not None:
        known.append(grid_value(data, model, subset_ratio=ratio, label_noise=noise, split=split))
    value = next((found for found in (reversed(known) if grid else known) if found is not None), None)
    if value is None:
        return PaperComparison(None)
    budget, differences = _budget(study, stream), _differences(trial, stream, SETTINGS[data, model], parts)
    return PaperComparison(None if differences else value, budget, differences)


def paper_notes(found: Iterable[PaperComparison]) -> tuple[str, ...]:
    """Return sentences on the paper's values that are shown, and those that are withheld and why."""
    found = list(found)
    tables, budgets = _tables_and_budgets(found)
    notes = []
    if tables:
        notes.append(
            f"Paper: {PAPER}, {tables}, rounded there; differences are ours minus the paper's, in percentage points."
        )
    notes += [f"Other budget than the paper's: {budget}." for budget in budgets]
    reasons = list(dict.fromkeys("; ".join(own.differences) for own in found if own.differences))
    more = f" (and {len(reasons) - MOST_REASONS} other combinations)" if len(reasons) > MOST_REASONS else ""
    if reasons:
        listed = " | ".join(reasons[:MOST_REASONS])
        notes.append(f"Not compared with the paper's value, as the protocol differs: {listed}{more}.")
    return tuple(notes)


def paper_caption(marks: str, found: Iterable[PaperComparison], end: str = "") -> str:
    """Return a caption's sentences on the paper's values that a figure shows as `marks`; ``""`` if there are none."""
    tables, budgets = _tables_and_budgets(found)
    sentences = [f" Our budget is another: {budget}." for budget in budgets]
    return "".join([f" {marks}: {PAPER}, {tables}{end}.", *sentences]) if tables else ""


def _tables_and_budgets(found: Iterable[PaperComparison]) -> tuple[str, list[str]]:
    """Return the paper's tables that the values shown are from, and the budgets that differ."""
    shown = [own for own in found if own.value is not None]
    tables = dict.fromkeys(own.value.table for own in shown if own.value is not None)
    return " and ".join(tables), list(dict.fromkeys("; ".join(own.budget) for own in shown if own.budget))


def _budget(study: StudyData, stream: Mapping[str, Any]) -> tuple[str, ...]:
    parts = []
    if stream.get("epochs") != EPOCHS:
        parts.append(f"{stream.get('epochs')} of {EPOCHS} epochs")
    warm = stream.get("warm_epochs")
    if warm is not None and not stream.get("fresh"):
        usual = math.floor(stream["epochs"] / stream["subset_ratio"] + 1e-9)
        if warm != usual:
            parts.append(f"{warm} epochs of warm-starting, where an equal number of updates takes {usual}")
    for name in ("train_limit", "test_limit"):
        limit = study.settings.get(name)
        if limit is not None:
            parts.append(f"{limit} {name.removesuffix('_limit')}ing images only")
    return tuple(parts)


def _differences(trial: TrialData, stream: Mapping[str, Any], setting: str, parts: Iterable[str]) -> tuple[str, ...]:
    rate, decay = OPTIMISER[setting]
    expected: dict[str, dict[str, Any]] = {
        "training": {
            "batch_size": 256,
            "learning_rate": rate,
            "weight_decay": decay,
            "betas": [0.9, 0.999],
            "eps": 1e-8,
            "warmup_ratio": 0.1,
            "clip": 0.5,
            "fresh_optimizer": True,
            "augment": "none",
        },
        "model": {"width": 1.0, "dropout": None, "head_hidden": None},
        "stream": {"noise_rule": "uniform"},
        "method": {name: value for part in parts for name, value in _OF_METHOD.get(part, {}).items()},
    }
    if setting == "mnist_mlp":
        expected["model"]["hidden"] = [100, 100]
    found = []
    for section, values in expected.items():
        own = trial.config.get(section)
        if not isinstance(own, Mapping):
            found.append(f"{section} is not recorded")
            continue
        own = {**_LATER.get(section, {}), **own}
        for name, value in values.items():
            if name not in own:
                found.append(f"{section}.{name} is not recorded")
            elif not _same(own[name], value):
                found.append(f"{name} = {own[name]} (paper: {value})")
    return tuple(found)


def _same(value: object, expected: object) -> bool:
    if isinstance(expected, Sequence) and not isinstance(expected, str):
        return isinstance(value, Sequence) and list(value) == list(expected)
    return value == expected
