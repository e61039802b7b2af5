"""Diagnosis of one network: which signs of lost plasticity it shows, how strong, and which methods act on them.

Every sign is a number of the network next to the same number of freshly initialised ones. It says that the two differ,
not why, and not what would help: docs/indicators.md has what is known of each.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ht_ray._checks import check_number
from ht_ray.diagnostics._measuring import Loss, call, chunks, count, measuring, take
from ht_ray.diagnostics.indicators import Indicators
from ht_ray.diagnostics.probe import OptimizerMaker, probe_loss, refresh
from ht_ray.diagnostics.registry import IndicatorConfig
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.detached_copy import detached_copy
from ht_ray.mechanisms.weights.rng import derive_seed, generator
from ht_ray.methods.method import Inputs

__all__ = ["SIGNS", "Diagnosis", "Finding", "Sign", "diagnose"]

Strength = Literal["none", "slight", "clear", "strong", "unknown"]
_STRENGTHS: tuple[Strength, ...] = ("slight", "clear", "strong")


@dataclass(frozen=True)
class Sign:
    """One sign of lost plasticity, and what this package has against it.

    Attributes
    ----------
    name
        What a table calls it.
    indicator
        The indicator that it is read from.
    unit
        Of its values, for tables.
    limits
        From where on it is slight, clear and strong, on the scale that `scale` names. They are this package's: nobody
        has found values that hold for every network.
    scale
        How it is compared with fresh networks: ``"ratio"`` (the network's value over theirs), ``"difference"``, or
        ``"progress"`` (the share of what a fresh network learns).
    says
        What it means, a sentence with a place for the comparison.
    methods
        Names of methods that act on it, by what they do or what is reported of them.
    evidence
        Where the documentation has the sources, and the caveats.
    """

    name: str
    indicator: str
    unit: str
    limits: tuple[float, float, float]
    scale: Literal["ratio", "difference", "progress"]
    says: str
    methods: tuple[str, ...]
    evidence: str


SIGNS = (
    Sign(
        "trainability",
        "probe_loss",
        "nats on new random labels",
        (0.9, 0.7, 0.4),
        "progress",
        "on random labels it gets {share:.0%} of the way that a fresh network gets in as many steps",
        ("shrink_perturb", "head_reset", "plasticity_injection", "continual_backprop", "regenerative"),
        "docs/indicators.md#probe",
    ),
    Sign(
        "dormant units",
        "dormant_ratio",
        "share of units",
        (0.05, 0.15, 0.4),
        "difference",
        "{share:.0%} more of its units than of fresh networks' are hardly ever active",
        ("redo", "continual_backprop", "crelu"),
        "docs/indicators.md#units",
    ),
    Sign(
        "rank of the features",
        "effective_rank",
        "dimensions",
        (0.8, 0.5, 0.25),
        "ratio",
        "its features span {share:.0%} of the directions that fresh networks' do",
        ("shrink_perturb", "continual_backprop"),
        "docs/indicators.md#features",
    ),
    Sign(
        "weight magnitude",
        "weight_magnitude",
        "mean square",
        (2.0, 5.0, 20.0),
        "ratio",
        "its weights are {share:.3g} times as large (mean square) as fresh ones",
        ("l2", "regenerative", "weight_clipping", "shrink_perturb"),
        "docs/indicators.md#weights",
    ),
    Sign(
        "gradients",
        "gradient_norm",
        "norm on new random labels",
        (0.5, 0.2, 0.05),
        "ratio",
        "on random labels its gradient has {share:.0%} of the norm that fresh networks' have",
        ("crelu", "layer_norm"),
        "docs/indicators.md#gradients",
    ),
)
"""The signs that `diagnose` looks for, the one that asks directly first."""


@dataclass(frozen=True)
class Finding:
    """One sign in one network.

    Attributes
    ----------
    sign
        What was looked for.
    value
        The network's.
    fresh
        Those of the fresh networks.
    share
        The network's value compared with the mean of the fresh ones, on the sign's scale; NaN where that means nothing.
    strength
        ``"none"``, ``"slight"``, ``"clear"`` or ``"strong"``; ``"none"`` also where the value lies within those of the
        fresh networks; ``"unknown"`` where it is not defined.
    """

    sign: Sign
    value: float
    fresh: tuple[float, ...]
    share: float
    strength: Strength

    @property
    def fresh_mean(self) -> float:
        """The mean of the fresh networks' values."""
        return math.fsum(self.fresh) / len(self.fresh)


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; ``print`` shows it in words.

    Attributes
    ----------
    findings
        One for each of `SIGNS`, in their order.
    loss
        The network's mean loss on the labels that were given.
    samples
        The number of samples it was measured on.
    steps
        The steps of training of the probe.
    """

    findings: tuple[Finding, ...]
    loss: float
    samples: int
    steps: int

    @property
    def signs(self) -> tuple[Finding, ...]:
        """The findings that are a sign, however slight."""
        return tuple(finding for finding in self.findings if finding.strength in _STRENGTHS)

    @property
    def strength(self) -> Strength:
        """How strong trainability is lost: the one sign that asks directly."""
        return self.findings[0].strength

    def describe(self, width: int = 100) -> str:
        """Return the findings in words: a table, a sentence and the methods for each sign, and what they do not say."""
        fresh = len(self.findings[0].fresh)
        lines = [
            f"Against {fresh} fresh network{'s' * (fresh != 1)} of the same form, on {self.samples} samples; "
            f"loss on their labels {self.loss:.3g}; probe: {self.steps} steps.",
            "",
        ]
        rows = [("sign", "this network", "fresh networks", "their range", "strength")]
        for one in self.findings:
            spread = f"{min(one.fresh):.3g} to {max(one.fresh):.3g}" if len(one.fresh) > 1 else ""
            rows.append((one.sign.name, f"{one.value:.3g}", f"{one.fresh_mean:.3g}", spread, one.strength))
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += ["  ".join(f"{text:<{size}}" for text, size in zip(row, sizes, strict=True)).rstrip() for row in rows]
        for one in self.signs:
            said = one.sign.says.format(share=max(one.share, 0.0))
            lines += ["", *textwrap.wrap(f"{one.sign.name.capitalize()}, {one.strength}: {said}.", width)]
            lines.append(f"  methods that act on it: {', '.join(one.sign.methods)}")
            lines.append(f"  what is known of it: {one.sign.evidence}")
        if not self.signs:
            lines += ["", "No sign of lost plasticity: nothing differs from fresh networks by more than the limits."]
        return "\n".join([*lines, "", *textwrap.wrap(self._caveat, width)])

    @property
    def _caveat(self) -> str:
        text = (
            "A trained network differs from a fresh one in any case: only trainability asks whether it still learns, "
            "and it does not tell how well what is learned generalises. The limits are this package's. Whether a "
            "method helps here, a comparison on your data says (ht-ray continual); each one's price: docs/methods.md."
        )
        if self.strength == "unknown":
            return f"The probe says nothing: fresh networks learn next to nothing in {self.steps} steps, too. {text}"
        return text

    def __str__(self) -> str:
        return self.describe()


def diagnose(
    model: nn.Module,
    inputs: Inputs,
    labels: Tensor,
    *,
    fresh: nn.Module | Callable[[], nn.Module] | None = None,
    fresh_networks: int = 5,
    num_classes: int | None = None,
    backbone: nn.Module | str | None = None,
    make_optimizer: OptimizerMaker | None = None,
    loss: Loss = cross_entropy,
    samples: int = 512,
    probe_steps: int = 100,
    probe_batch_size: int = 256,
    seed: int = 0,
) -> Diagnosis:
    """Compare a network with fresh ones, and say which signs of lost plasticity it shows and what acts on them.

    The network is left as it is: weights, gradients, modes, buffers and hooks. Everything random comes from `seed`.

    Parameters
    ----------
    model
        The network, trained.
    inputs, labels
        Samples as the network takes them, ``(N, ...)`` or a tuple of such, and their labels, ``(N, ...)``. `samples` of
        them are drawn.
    fresh
        A freshly initialised network, or what makes one. None: `model`'s layers initialise themselves again.
    fresh_networks
        How many to compare with; one, where `fresh` is a network.
    num_classes
        Of the random labels of the probe. None: the number of the network's outputs.
    backbone
        The sub-module whose output are the features, or its name; see `ht_ray.diagnostics.Indicators`.
    make_optimizer
        Makes the optimiser of the probe from parameters; None: AdamW with a learning rate of 1e-3.
    loss
        Maps outputs and labels to the mean loss. For targets that are no classes, the probe takes normally distributed
        ones of the shape of `labels`.
    samples
        Most samples that are used.
    probe_steps, probe_batch_size
        Of the probe's training.
    seed
        Of the draws.

    Returns
    -------
    Diagnosis
        One finding for each of `SIGNS`.

    Raises
    ------
    SettingError
        If a value is not accepted, layers cannot initialise themselves and there is no `fresh`, or `fresh` makes a
        network of another form.

    References
    ----------
    Lyle et al. (2023). Understanding plasticity in neural networks. arXiv:2303.01486.
    Lee et al. (2024), appendix C. arXiv:2406.02596.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> inputs, labels = torch.randn(64, 8), torch.randint(4, (64,))
    >>> with torch.no_grad():
    ...     _ = net[0].bias.fill_(-100.0)  # its units never fire
    >>> found = diagnose(net, inputs, labels, backbone="1", fresh_networks=2, probe_steps=50)
    >>> [(finding.sign.name, finding.strength) for finding in found.signs][:2]
    [('trainability', 'strong'), ('dormant units', 'strong')]
    """
    if len(labels) != count(inputs):
        raise SettingError(f"diagnose: {len(labels)} labels for {count(inputs)} inputs: accepted is one each.")
    check_number("diagnose: fresh_networks", fresh_networks, low=1, integer=True)
    check_number("diagnose: samples", samples, low=2, integer=True)
    check_number("diagnose: seed", seed, integer=True)
    order = torch.randperm(len(labels), generator=generator(seed, "diagnosis: batch"))[:samples].to(labels.device)
    inputs, labels = take(inputs, order), labels[order]
    config = IndicatorConfig(every=1, samples=samples, names=("weights", "features", "units", "gradients"))
    with measuring(model), torch.no_grad():
        outputs = torch.cat([call(model, chunk) for chunk, _ in chunks(inputs, config.chunk_size)])
        classes = not labels.is_floating_point()
        if classes and outputs.ndim == 2 and not 0 <= int(labels.min()) <= int(labels.max()) < outputs.shape[1]:
            raise SettingError(
                f"diagnose: labels go from {int(labels.min())} to {int(labels.max())}, and the network has "
                f"{outputs.shape[1]} outputs."
            )
        if not classes and outputs.shape != labels.shape:
            raise SettingError(
                f"diagnose: outputs are {tuple(outputs.shape)} and targets {tuple(labels.shape)}: accepted is one "
                "target for each output."
            )
        reached = float(loss(outputs.float(), labels))
    if num_classes is None:
        num_classes = outputs.shape[1] if classes and outputs.ndim > 1 else 1
    draws = generator(seed, "diagnosis: labels")
    if classes:
        targets = torch.randint(num_classes, labels.shape, generator=draws).to(labels.device)
        chance = math.log(num_classes)
    else:
        targets = torch.randn(labels.shape, generator=draws).to(labels)
        chance = float(loss(torch.zeros_like(outputs, dtype=torch.float32), targets))

    def measure(network: nn.Module) -> dict[str, float]:
        indicators = Indicators(
            config, network, inputs, targets, backbone=backbone, num_classes=num_classes, seed=seed, loss=loss
        )
        values = indicators.measure()
        probed = probe_loss(
            network,
            make_optimizer or partial(torch.optim.AdamW, lr=1e-3),
            inputs,
            num_classes=num_classes,
            steps=probe_steps,
            batch_size=probe_batch_size,
            targets=targets,
            seed=seed,
            loss=loss,
        )
        return {**values, "probe_loss": float(probed)}

    own = measure(model)
    others = []
    for number in range(1 if isinstance(fresh, nn.Module) else fresh_networks):
        other = detached_copy(model)
        try:
            refresh(other, fresh, derive_seed(seed, f"diagnosis: fresh network {number}"))
        except ValueError as error:
            raise SettingError(f"diagnose: fresh: {error}") from error
        others.append(measure(other))
    findings = tuple(
        _finding(sign, own[sign.indicator], tuple(other[sign.indicator] for other in others), chance) for sign in SIGNS
    )
    return Diagnosis(findings, reached, len(labels), probe_steps)


def _finding(sign: Sign, value: float, fresh: Sequence[float], chance: float) -> Finding:
    mean = math.fsum(fresh) / len(fresh)
    if sign.scale == "progress":
        # What a fresh network does not learn, nobody can be behind in.
        share = (chance - value) / (chance - mean) if chance - mean > 0.05 * abs(chance) else math.nan
    elif sign.scale == "ratio":
        share = value / mean if mean else math.nan
    else:
        share = value - mean
    if not math.isfinite(share):
        return Finding(sign, value, tuple(fresh), math.nan, "unknown")
    first, *_, last = sign.limits
    grows = last > first
    reached = sum(share >= limit if grows else share <= limit for limit in sign.limits)
    # The loss is the one of which more is worse while less of the share is.
    beyond = value > max(fresh) if grows or sign.scale == "progress" else value < min(fresh)
    return Finding(sign, value, tuple(fresh), share, ("none", *_STRENGTHS)[reached if beyond else 0])
