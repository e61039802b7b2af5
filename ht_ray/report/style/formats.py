"""Names and formats of what a reader is shown: metrics, indicators, data sets, networks, seeds, numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from ht_ray.records.names import humanize
from ht_ray.report.data.study import Scalar, StudyData

__all__ = [
    "INDICATOR_TITLES",
    "NOTHING",
    "PUBLISHED_NAMES",
    "best_as_shown",
    "capitalize",
    "describe",
    "display_unit",
    "format_interval",
    "format_mean_sd",
    "format_seeds",
    "format_significant",
    "format_value",
    "humanize",
    "indicator_title",
    "metric_title",
    "reported_indicators",
]

K = TypeVar("K")

PUBLISHED_NAMES = {
    "digits": "digits",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "tiny-imagenet": "Tiny ImageNet",
    "mlp": "MLP",
    "resnet18": "ResNet-18",
    "vit_tiny": "ViT-Tiny",
    "vgg16": "VGG-16",
}

INDICATOR_TITLES = {
    "weight_magnitude": "weight magnitude (mean square)",
    "weight_distance": "distance to initial weights (mean square)",
    "zero_activation_ratio": "zero activations (share)",
    "zero_gradient_ratio": "zero gradients (share)",
    "srank": "feature rank (srank)",
    "effective_rank": "effective rank of the features",
    "stable_rank": "stable rank of the features",
    "dormant_ratio": "dormant units (share)",
    "dead_unit_ratio": "units that never fire (share)",
    "gradient_norm": "gradient norm",
    "grama_ratio": "units with hardly any gradient (GraMa, share)",
    "hessian_max": "largest Hessian eigenvalue",
    **{f"hessian_{rank}": f"Hessian eigenvalue {rank}" for rank in range(2, 11)},
    "hessian_min": "smallest Hessian eigenvalue seen",
    "hessian_residual": "error bound of the Hessian eigenvalues",
    "gradient_cosine": "cosine between samples' gradients (mean)",
    "gradient_interference": "conflicting gradients (share of pairs)",
    "local_redundancy": "local redundancy (squared gradient norm on random labels)",
    "probe_loss": "probe: loss reached (nats)",
    "probe_baseline": "probe: loss of a fresh network (nats)",
    "probe_gap": "probe: loss above a fresh network (nats; more is worse)",
}

# What the other indicators of its group already say: in a study's files and TensorBoard, but not in its report.
DETAILS = {*(f"hessian_{rank}" for rank in range(2, 11)), "hessian_residual", "probe_loss", "probe_baseline"}

#: Numbers of continual RL, in the unit of the games' returns.
RETURNS = ("average_return", "first_area", "last_area", "plasticity_loss", "forgetting")

NOTHING = "–"
MOST_DECIMALS = 6


def capitalize(text: str) -> str:
    """Return `text` with a capital letter first, and the others as they are."""
    return text[:1].upper() + text[1:]


def metric_title(metric: str) -> str:
    """Return ``"average accuracy (%)"`` for ``"average_accuracy"``: the metric in words, with its unit."""
    return humanize(metric) + display_unit(metric)[1]


def indicator_title(name: str) -> str:
    """Return what an indicator is called, with its unit; the name in words where it has no title.

    Examples
    --------
    >>> indicator_title("dormant_ratio"), indicator_title("my_number")
    ('dormant units (share)', 'my number')
    """
    return INDICATOR_TITLES.get(name) or metric_title(name)


def reported_indicators(study: StudyData) -> tuple[str, ...]:
    """Return the indicators of a report: all that were measured but the further eigenvalues and the probe's parts."""
    known = study.indicator_names
    return tuple(name for name in known if name not in DETAILS) or known


def display_unit(metric: str) -> tuple[float, str]:
    """Return the factor by which `metric` is shown and the unit behind its name: accuracies are shown in per cent."""
    return (100.0, " (%)") if metric.endswith("accuracy") else (1.0, "")


def format_value(metric: str, value: float, *, sign: bool = False) -> str:
    """Return `value` in the digits shown: two decimals of a per cent, one of a return, four of any other number."""
    if not math.isfinite(value):
        return NOTHING
    factor, unit = display_unit(metric)
    decimals = 1 if metric in RETURNS else 2 if unit else 4
    text = f"{factor * value:{'+' if sign else ''}.{decimals}f}"
    # A difference that rounds to nothing has no sign.
    return text[1:] if sign and float(text) == 0 else text


def format_mean_sd(metric: str, value: float, spread: float, *, sign: bool = False) -> str:
    """Return ``"78.12 ± 0.41"``, or the value alone where the spread is unknown."""
    text = format_value(metric, value, sign=sign)
    return f"{text} ± {format_value(metric, spread)}" if math.isfinite(spread) else text


def format_interval(metric: str, low: float, high: float) -> str:
    """Return ``"[77.71, 78.52]"``, or a dash where there is no interval."""
    return f"[{format_value(metric, low)}, {format_value(metric, high)}]" if math.isfinite(low) else NOTHING


def format_significant(value: float, spread: float = math.nan) -> str:
    """Return a number of any size in four digits, or, where its spread is known, in those that two digits of it leave.

    Examples
    --------
    >>> format_significant(0.00123456, 0.000117), format_significant(41.0), format_significant(math.nan)
    ('0.00123 ± 0.00012', '41', '–')
    >>> format_significant(6630.4, 277.1), format_significant(1.2346e-9, 1.7e-10)
    ('6630 ± 277', '1.235e-09 ± 1.7e-10')
    """
    if not math.isfinite(value):
        return NOTHING
    if not math.isfinite(spread):
        return f"{value:.4g}"
    decimals = max(1 - math.floor(math.log10(spread)), 0) if spread > 0 else MOST_DECIMALS + 1
    if decimals > MOST_DECIMALS or abs(value) >= 1e6 or spread >= 1e6:
        return f"{value:.4g} ± {spread:.2g}"
    return f"{value:.{decimals}f} ± {spread:.{decimals}f}"


def best_as_shown(values: Mapping[K, float], better: str | None, text: Callable[[float], str]) -> list[K]:
    """Return the keys whose value shows the same digits as the best one's.

    Parameters
    ----------
    better : {"max", "min", None}
        Which end is the better one; with None no key is returned.
    text : callable
        Returns the digits shown of a value.

    Examples
    --------
    >>> best_as_shown({"a": 0.701, "b": 0.699, "c": 0.6}, "max", "{:.2f}".format)
    ['a', 'b']
    """
    if not values or better is None:
        return []
    top = text((max if better == "max" else min)(values.values()))
    return [key for key, value in values.items() if text(value) == top]


def format_seeds(seeds: Sequence[Scalar]) -> str:
    """Return ``"seeds 0–4"`` for a run of whole numbers, else the seeds one by one.

    Examples
    --------
    >>> format_seeds([0, 1, 2]), format_seeds([0, 7]), format_seeds([3])
    ('seeds 0–2', 'seeds 0, 7', 'seed 3')
    """
    whole = sorted(seed for seed in seeds if isinstance(seed, int))
    if len(whole) == len(seeds) > 2 and whole == list(range(whole[0], whole[-1] + 1)):
        return f"seeds {whole[0]}–{whole[-1]}"
    return f"seed{'s' if len(seeds) != 1 else ''} {', '.join(map(str, seeds))}"


def describe(study: StudyData) -> str:
    """Return one line: study, data set, network, stream of tasks, access mode (if the trials name one), seeds."""
    parts = []
    for section in ("data", "model"):
        chosen = study.settings.get(section)
        name = chosen.get("name") if isinstance(chosen, Mapping) else chosen
        if isinstance(name, str):
            parts.append(PUBLISHED_NAMES.get(name, name))
    stream = study.settings.get("stream")
    if isinstance(stream, str) and stream not in ("continual", "warm_start") and stream not in parts:
        parts.append(f"{stream} stream")
    access = {trial.settings.get("access") for trial in study.trials} - {None}
    if len(access) == 1:
        parts.append(f"{access.pop()} access")
    return f"{study.name}: {', '.join([*parts, format_seeds(study.seeds)])}"
