"""What a reader is shown: names of numbers, data sets and networks, seeds, and numbers in few digits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ht_ray.report.data.study import Scalar, StudyData

__all__ = [
    "INDICATOR_TITLES",
    "NOTHING",
    "describe",
    "indicator_title",
    "seeds_text",
    "shown_indicators",
    "shown_interval",
    "shown_number",
    "shown_pair",
    "shown_short",
    "shown_unit",
    "worded",
]

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
    "hessian_max": "largest Hessian eigenvalue",
    **{f"hessian_{rank}": f"Hessian eigenvalue {rank}" for rank in range(2, 11)},
    "hessian_min": "smallest Hessian eigenvalue seen",
    "hessian_residual": "error bound of the Hessian eigenvalues",
    "gradient_cosine": "cosine between samples' gradients (mean)",
    "gradient_interference": "conflicting gradients (share of pairs)",
    "probe_loss": "probe: loss reached (nats)",
    "probe_baseline": "probe: loss of a fresh network (nats)",
    "probe_gap": "probe: loss above a fresh network (nats; more is worse)",
}

# What the other indicators of its group already say: in a study's files and TensorBoard, but not in its report.
DETAILS = {*(f"hessian_{rank}" for rank in range(2, 11)), "hessian_residual", "probe_loss", "probe_baseline"}

NOTHING = "–"
MOST_DECIMALS = 6


def worded(metric: str) -> str:
    """Return ``"average accuracy"`` for ``"average_accuracy"``."""
    return metric.replace("_", " ")


def indicator_title(name: str) -> str:
    """Return what an indicator is called, with its unit; the name in words where it has no title.

    Examples
    --------
    >>> indicator_title("dormant_ratio"), indicator_title("my_number")
    ('dormant units (share)', 'my number')
    """
    return INDICATOR_TITLES.get(name) or f"{worded(name)}{shown_unit(name)[1]}"


def shown_indicators(study: StudyData) -> tuple[str, ...]:
    """Return the indicators of a report: all that were measured but the further eigenvalues and the probe's parts."""
    known = study.indicator_names
    return tuple(name for name in known if name not in DETAILS) or known


def shown_unit(metric: str) -> tuple[float, str]:
    """Return the factor by which `metric` is shown and the unit behind its name: accuracies are shown in per cent."""
    return (100.0, " (%)") if metric.endswith("accuracy") else (1.0, "")


def shown_number(metric: str, value: float, *, sign: bool = False) -> str:
    """Return `value` in the digits shown: two decimals of a per cent, or four of any other number."""
    if not math.isfinite(value):
        return NOTHING
    factor, unit = shown_unit(metric)
    text = f"{factor * value:{'+' if sign else ''}.{2 if unit else 4}f}"
    # A difference that rounds to nothing has no sign.
    return text[1:] if sign and float(text) == 0 else text


def shown_pair(metric: str, value: float, spread: float, *, sign: bool = False) -> str:
    """Return ``"78.12 ± 0.41"``, or the value alone where the spread is unknown."""
    text = shown_number(metric, value, sign=sign)
    return f"{text} ± {shown_number(metric, spread)}" if math.isfinite(spread) else text


def shown_interval(metric: str, low: float, high: float) -> str:
    """Return ``"[77.71, 78.52]"``, or a dash where there is no interval."""
    return f"[{shown_number(metric, low)}, {shown_number(metric, high)}]" if math.isfinite(low) else NOTHING


def shown_short(value: float, spread: float = math.nan) -> str:
    """Return a number of any size in four digits, or, where its spread is known, in those that two digits of it leave.

    Examples
    --------
    >>> shown_short(0.00123456, 0.000117), shown_short(41.0), shown_short(math.nan)
    ('0.00123 ± 0.00012', '41', '–')
    >>> shown_short(6630.4, 277.1), shown_short(1.2346e-9, 1.7e-10)
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


def seeds_text(seeds: Sequence[Scalar]) -> str:
    """Return ``"seeds 0–4"`` for a run of whole numbers, else the seeds one by one.

    Examples
    --------
    >>> seeds_text([0, 1, 2]), seeds_text([0, 7]), seeds_text([3])
    ('seeds 0–2', 'seeds 0, 7', 'seed 3')
    """
    whole = sorted(seed for seed in seeds if isinstance(seed, int))
    if len(whole) == len(seeds) > 2 and whole == list(range(whole[0], whole[-1] + 1)):
        return f"seeds {whole[0]}–{whole[-1]}"
    return f"seed{'s' if len(seeds) != 1 else ''} {', '.join(map(str, seeds))}"


def describe(study: StudyData) -> str:
    """Return one line: study, data set, network, access mode (if the trials name one), seeds."""
    settings = study.config.get("settings")
    parts = []
    for section in ("data", "model"):
        chosen = settings.get(section) if isinstance(settings, Mapping) else None
        name = chosen.get("name") if isinstance(chosen, Mapping) else chosen
        if isinstance(name, str):
            parts.append(PUBLISHED_NAMES.get(name, name))
    access = {trial.settings.get("access") for trial in study.trials} - {None}
    if len(access) == 1:
        parts.append(f"{access.pop()} access")
    return f"{study.name}: {', '.join([*parts, seeds_text(study.seeds)])}"
