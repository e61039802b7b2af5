"""Indicators: one record each, with what it is called, what it says and how it is measured.

An indicator is added by a record, here or with `register_indicator`. From the records follow the groups that
`IndicatorConfig.names` accepts and what `Indicators` measures; tests hold the tables of ``docs/indicators.md`` and the
titles of reports (`ht_ray.report` knows nothing of this package) to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ht_ray._checks import check_choice, check_fields, refused
from ht_ray.diagnostics._measuring import Loss, measuring, run
from ht_ray.diagnostics.curvature import HessianEigenvalues, hessian_eigenvalues
from ht_ray.diagnostics.features import Ranks, feature_recorder, ranks, zero_activation_ratio
from ht_ray.diagnostics.gradients import (
    GradientCovariance,
    LossGradients,
    gradient_covariance,
    local_redundancy,
    loss_gradients,
)
from ht_ray.diagnostics.probe import OptimizerMaker, probe_loss
from ht_ray.diagnostics.units import activation_recorder, unit_gradient_recorder
from ht_ray.diagnostics.weights import weight_distance, weight_magnitude
from ht_ray.errors import SettingError
from ht_ray.methods.method import Inputs

__all__ = [
    "INDICATORS",
    "INDICATOR_GROUPS",
    "UNLABELLED_GROUPS",
    "Indicator",
    "IndicatorConfig",
    "Measurement",
    "register_indicator",
]

_MOST_EIGENVALUES = 10


@dataclass(frozen=True)
class Indicator:
    """One indicator of plasticity.

    Examples
    --------
    >>> indicator = INDICATORS["srank"]
    >>> indicator.title, indicator.group, indicator.plastic
    ('feature rank (srank)', 'features', 'more')
    """

    name: str
    """Its column in results, curves and checkpoints."""
    title: str
    """What figures and tables call it, with its unit."""
    group: str
    """The indicators that it is measured with, at one price: a group of `IndicatorConfig.names`, or a new one. What a
    pass over the batch records is there for the groups ``"features"``, ``"units"`` and ``"gradients"``."""
    definition: str
    """What it is, for the table of the documentation."""
    plastic: Literal["more", "less", "unclear"]
    """Which end was seen in networks that still learn. Of one network it proves nothing."""
    source: str
    """Who defined it, or reports that end."""
    measure: Callable[[Measurement], Tensor | None]
    """Returns its value, shape ``()``; None where this network or configuration has none."""
    detail: bool = False
    """Whether others of its group say it already: measured and written, but not shown in reports."""


INDICATORS: dict[str, Indicator] = {}
"""Every indicator, by its name, in the order of the results."""

INDICATOR_GROUPS: dict[str, tuple[str, ...]] = {}
"""The names of a group's indicators, by the name of the group in `IndicatorConfig.names`."""

UNLABELLED_GROUPS = ("weights", "features", "units")
"""The groups that need neither labels nor an optimiser: what agents measure."""


def register_indicator(indicator: Indicator) -> Indicator:
    """Add `indicator` to `INDICATORS` and its group to `INDICATOR_GROUPS`, and return it.

    Parameters
    ----------
    indicator : Indicator
        The record. In a study, the module that registers it must be imported by the workers, too.

    Raises
    ------
    SettingError
        If another indicator has the name.
    """
    if indicator.name in INDICATORS:
        raise SettingError(f"Indicator.name = {indicator.name!r}: accepted is a name that no other indicator has.")
    INDICATORS[indicator.name] = indicator
    INDICATOR_GROUPS[indicator.group] = (*INDICATOR_GROUPS.get(indicator.group, ()), indicator.name)
    return indicator


@dataclass(frozen=True)
class IndicatorConfig:
    """Which indicators of plasticity are measured, when, and on how many samples.

    Raises
    ------
    SettingError
        If a value is not accepted.

    References
    ----------
    Lee et al. (2024), appendix C. arXiv:2406.02596.
    Sokar et al. (2023). The dormant neuron phenomenon in deep reinforcement learning. arXiv:2302.12902.
    Lyle et al. (2023). Understanding plasticity in neural networks. arXiv:2303.01486.

    Examples
    --------
    >>> IndicatorConfig(names=("weights", "feature"))
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: IndicatorConfig.names = 'feature': accepted are 'weights', 'features', 'units', \
'gradients', 'curvature', 'covariance', 'redundancy', 'probe'. Did you mean 'features'?
    """

    every: int = 0
    """Epochs from one measurement to the next; 0 measures nothing."""
    samples: int = 512
    """Training samples in the fixed batch; 512 is the paper's least."""
    names: tuple[str, ...] = ("weights", "features", "units", "gradients")
    """Groups of indicators: weights, features, units, gradients; and, at a higher price: curvature (at most
    `hessian_iterations` products, each a few times the price of a training step on the fixed batch, and as many copies
    of the network held), covariance (of single samples' gradients), redundancy (eight backward passes), probe
    (`probe_steps` of training)."""
    srank_delta: float = 0.01
    """Share of the sum of singular values that srank leaves out."""
    dormant_threshold: float = 0.025
    """A unit is dormant whose activity is at most this share of its layer's average."""
    grama_threshold: float = 0.01
    """A unit is inactive whose gradient is at most this share of its layer's average."""
    eigenvalues: int = 5
    """Largest eigenvalues of the Hessian."""
    hessian_iterations: int = 50
    """Most Hessian-vector products for them."""
    covariance_samples: int = 64
    """Samples of the fixed batch whose gradients are compared."""
    probe_steps: int = 100
    """Steps of training on random labels."""
    probe_batch_size: int = 256
    """Samples of each of these steps."""
    chunk_size: int = 256
    """Samples computed at a time; changes memory and speed, not results but by rounding."""

    def __post_init__(self) -> None:
        check_fields(self, "every", low=0, integer=True)
        check_fields(self, "samples", "covariance_samples", low=2, integer=True)
        for name in self.names:
            check_choice("IndicatorConfig.names", name, INDICATOR_GROUPS)
        if not self.names or len(set(self.names)) < len(self.names):
            why = ": accepted are one or more different groups; {IndicatorConfig.every} = 0 measures nothing."
            raise refused("IndicatorConfig.names", self.names, why)
        check_fields(self, "srank_delta", low=0, high=1, low_open=True, high_open=True)
        check_fields(self, "dormant_threshold", "grama_threshold", low=0)
        check_fields(self, "eigenvalues", low=1, high=_MOST_EIGENVALUES, integer=True)
        check_fields(self, "hessian_iterations", low=self.eigenvalues, integer=True)
        check_fields(self, "probe_steps", "probe_batch_size", "chunk_size", low=1, integer=True)


@dataclass
class Measurement:
    """One network on one batch, for as long as it is measured: what several indicators need is computed once.

    Parameters
    ----------
    config, module, inputs, labels, initial, backbone, make_optimizer, num_classes, seed, loss, fresh
        As of `ht_ray.diagnostics.Indicators`; inputs and labels are on the network's device.
    """

    config: IndicatorConfig
    module: nn.Module
    inputs: Inputs
    labels: Tensor
    initial: Mapping[str, Tensor]
    backbone: nn.Module | str | None
    make_optimizer: OptimizerMaker | None
    num_classes: int
    seed: int
    loss: Loss
    fresh: nn.Module | Callable[[], nn.Module] | None

    @cached_property
    def _one_pass(self) -> dict[str, Any]:
        """What features, units and gradients are, by their group: one pass over the batch serves all three."""
        config = self.config
        recorded: dict[str, Any] = {}
        with ExitStack() as stack:
            if "units" in config.names:
                recorded["units"] = stack.enter_context(activation_recorder(self.module))
            if "features" in config.names:
                recorded["features"] = stack.enter_context(feature_recorder(self.module, self.backbone))
            if "gradients" in config.names:
                recorded["unit gradients"] = stack.enter_context(unit_gradient_recorder(self.module))
                recorded["gradients"] = loss_gradients(
                    self.module,
                    self.inputs,
                    self.labels,
                    backbone=self.backbone,
                    loss=self.loss,
                    chunk_size=config.chunk_size,
                )
            else:
                with measuring(self.module):
                    run(self.module, self.inputs, config.chunk_size)
        return recorded

    @cached_property
    def features(self) -> Tensor:
        """The matrix of features, ``(N, d)``."""
        matrix: Tensor = self._one_pass["features"].matrix()
        return matrix

    @cached_property
    def ranks(self) -> Ranks:
        """The ranks of the features."""
        return ranks(self.features, self.config.srank_delta)

    @cached_property
    def dormant_ratios(self) -> dict[float, dict[str, Tensor]]:
        """The shares of dormant units, by threshold and layer: at the configured threshold, and at 0."""
        ratios: dict[float, dict[str, Tensor]] = self._one_pass["units"].dormant_ratios(
            (self.config.dormant_threshold, 0.0)
        )
        return ratios

    @property
    def grama_ratio(self) -> Tensor:
        """The share of units that the loss hardly reaches, at the configured threshold."""
        threshold = self.config.grama_threshold
        ratio: Tensor = self._one_pass["unit gradients"].dormant_ratios((threshold,))[threshold]["all"]
        return ratio

    @property
    def gradients(self) -> LossGradients:
        """What the gradients of the batch's loss say."""
        gradients: LossGradients = self._one_pass["gradients"]
        return gradients

    @cached_property
    def curvature(self) -> HessianEigenvalues:
        """The eigenvalues of the loss's Hessian."""
        return hessian_eigenvalues(
            self.module,
            self.inputs,
            self.labels,
            k=self.config.eigenvalues,
            iterations=self.config.hessian_iterations,
            seed=self.seed,
            loss=self.loss,
            chunk_size=self.config.chunk_size,
        )

    def eigenvalue(self, rank: int) -> Tensor | None:
        """Return the `rank`-th largest eigenvalue, counted from 1; None if so many are not wanted, or do not exist."""
        values = self.curvature.values
        return values[rank - 1] if rank <= len(values) else None

    @cached_property
    def covariance(self) -> GradientCovariance:
        """The cosines between the gradients of single samples."""
        return gradient_covariance(
            self.module, self.inputs, self.labels, samples=self.config.covariance_samples, loss=self.loss
        )

    @property
    def local_redundancy(self) -> Tensor:
        """The expected squared norm of the gradient on random labels."""
        return local_redundancy(
            self.module,
            self.inputs,
            num_classes=self.num_classes,
            seed=self.seed,
            loss=self.loss,
            chunk_size=self.config.chunk_size,
        )

    @cached_property
    def probe_loss(self) -> Tensor:
        """The loss that a copy of the network reaches on random labels."""
        return self._probe(fresh=False)

    @cached_property
    def probe_baseline(self) -> float:
        """The loss that a fresh network reaches on the same; it can be given by assigning it."""
        return float(self._probe(fresh=self.fresh if self.fresh is not None else True))

    def _probe(self, fresh: nn.Module | Callable[[], nn.Module] | bool) -> Tensor:
        assert self.make_optimizer is not None  # as Indicators checks
        return probe_loss(
            self.module,
            self.make_optimizer,
            self.inputs,
            num_classes=self.num_classes,
            steps=self.config.probe_steps,
            batch_size=self.config.probe_batch_size,
            seed=self.seed,
            fresh=fresh,
            loss=self.loss,
            chunk_size=self.config.chunk_size,
        )


_LEE = "Lee et al. 2024, arXiv 2406.02596, appendix C"
_LYLE = "Lyle et al. 2023, arXiv 2303.01486"
_SOKAR = "Sokar et al. 2023, arXiv 2302.12902"
_LANCZOS = "Ghorbani et al. 2019, arXiv 1901.10159"

for _indicator in (
    Indicator(
        name="weight_magnitude",
        title="weight magnitude (mean square)",
        group="weights",
        definition="`Σ w² / number of weights`, over all trainable parameters",
        plastic="less",
        source=_LEE,
        measure=lambda m: weight_magnitude(m.module)["all"],
    ),
    Indicator(
        name="weight_distance",
        title="distance to initial weights (mean square)",
        group="weights",
        definition="`Σ (w − w₀)² / number of weights`, with the initial weights `w₀`",
        plastic="unclear",
        source=_LEE,
        measure=lambda m: weight_distance(m.module, m.initial)["all"],
    ),
    Indicator(
        name="zero_activation_ratio",
        title="zero activations (share)",
        group="features",
        definition="share of exact zeros in `A`",
        plastic="less",
        source=_LEE,
        measure=lambda m: zero_activation_ratio(m.features),
    ),
    Indicator(
        name="srank",
        title="feature rank (srank)",
        group="features",
        definition="smallest k with `(σ₁ + … + σₖ) / Σσ ≥ 1 − 0.01`",
        plastic="more",
        source="Kumar et al. 2020, arXiv 2010.14498",
        measure=lambda m: m.ranks.srank,
    ),
    Indicator(
        name="effective_rank",
        title="effective rank of the features",
        group="features",
        definition="`exp(−Σ pᵢ·log pᵢ)`, with `pᵢ = σᵢ / Σσ`",
        plastic="more",
        source="Roy & Vetterli 2007, EUSIPCO",
        measure=lambda m: m.ranks.effective_rank,
    ),
    Indicator(
        name="stable_rank",
        title="stable rank of the features",
        group="features",
        definition="`Σσ² / σ₁²`",
        plastic="more",
        source="Rudelson & Vershynin 2007, Journal of the ACM 54 (4)",
        measure=lambda m: m.ranks.stable_rank,
    ),
    Indicator(
        name="dormant_ratio",
        title="dormant units (share)",
        group="units",
        definition="share of units with score ≤ 0.025",
        plastic="less",
        source=_SOKAR,
        measure=lambda m: m.dormant_ratios[m.config.dormant_threshold]["all"],
    ),
    Indicator(
        name="dead_unit_ratio",
        title="units that never fire (share)",
        group="units",
        definition="share of units whose activation is always zero",
        plastic="less",
        source=_SOKAR,
        measure=lambda m: m.dormant_ratios[0.0]["all"],
    ),
    Indicator(
        name="zero_gradient_ratio",
        title="zero gradients (share)",
        group="gradients",
        definition="share of exact zeros in the gradient with respect to the features",
        plastic="less",
        source=_LEE,
        measure=lambda m: m.gradients.zero_ratio,
    ),
    Indicator(
        name="gradient_norm",
        title="gradient norm",
        group="gradients",
        definition="Euclidean norm of the gradient with respect to all trainable parameters",
        plastic="more",
        source="Abbas et al. 2023, arXiv 2303.07507",
        measure=lambda m: m.gradients.norm,
    ),
    Indicator(
        name="grama_ratio",
        title="units with hardly any gradient (GraMa, share)",
        group="gradients",
        definition="share of units whose mean absolute gradient is at most 0.01 of their layer's average",
        plastic="less",
        source="Liu et al. 2025, arXiv 2505.24061",
        measure=lambda m: m.grama_ratio,
    ),
    Indicator(
        name="hessian_max",
        title="largest Hessian eigenvalue",
        group="curvature",
        definition="the largest eigenvalue, λ₁",
        plastic="less",
        source=_LYLE,
        measure=lambda m: m.eigenvalue(1),
    ),
    *(
        Indicator(
            name=f"hessian_{rank}",
            title=f"Hessian eigenvalue {rank}",
            group="curvature",
            definition="the next, λ₂ ≥ λ₃ ≥ …: with λ₁ as many as `eigenvalues`",
            plastic="unclear",
            source=_LANCZOS,
            measure=partial(Measurement.eigenvalue, rank=rank),
            detail=True,
        )
        for rank in range(2, _MOST_EIGENVALUES + 1)
    ),
    Indicator(
        name="hessian_min",
        title="smallest Hessian eigenvalue seen",
        group="curvature",
        definition="the least that the iteration saw: an upper bound of the smallest eigenvalue",
        plastic="unclear",
        source=_LANCZOS,
        measure=lambda m: m.curvature.smallest,
    ),
    Indicator(
        name="hessian_residual",
        title="error bound of the Hessian eigenvalues",
        group="curvature",
        definition="the largest error bound of the eigenvalues above; large: raise `hessian_iterations`",
        plastic="unclear",
        source="Lanczos 1950, Journal of Research of the NBS 45 (4)",
        measure=lambda m: m.curvature.residuals.max(),
        detail=True,
    ),
    Indicator(
        name="gradient_cosine",
        title="cosine between samples' gradients (mean)",
        group="covariance",
        definition="mean of `c(i, j)`",
        plastic="unclear",
        source=_LYLE,
        measure=lambda m: m.covariance.cosine,
    ),
    Indicator(
        name="gradient_interference",
        title="conflicting gradients (share of pairs)",
        group="covariance",
        definition="share of pairs with `c(i, j) < 0`: a step for one raises the loss of the other",
        plastic="unclear",
        source=_LYLE,
        measure=lambda m: m.covariance.interference,
    ),
    Indicator(
        name="local_redundancy",
        title="local redundancy (squared gradient norm on random labels)",
        group="redundancy",
        definition="mean over eight draws of random labels of the squared norm of the gradient of the mean loss",
        plastic="more",
        source="Cheng 2026, ICML, PMLR 306; details ours",
        measure=lambda m: m.local_redundancy,
    ),
    Indicator(
        name="probe_loss",
        title="probe: loss reached (nats)",
        group="probe",
        definition="the loss it reaches, in nats",
        plastic="less",
        source=_LYLE,
        measure=lambda m: m.probe_loss,
        detail=True,
    ),
    Indicator(
        name="probe_baseline",
        title="probe: loss of a fresh network (nats)",
        group="probe",
        definition=(
            "what a freshly initialised network reaches with the same labels, batches and optimiser; measured once"
        ),
        plastic="unclear",
        source=_LYLE,
        measure=lambda m: torch.tensor(m.probe_baseline),
        detail=True,
    ),
    Indicator(
        name="probe_gap",
        title="probe: loss above a fresh network (nats; more is worse)",
        group="probe",
        definition="the difference: above 0, the network learns *less* well than a fresh one",
        plastic="less",
        source=_LYLE,
        measure=lambda m: m.probe_loss - m.probe_baseline,
    ),
):
    register_indicator(_indicator)
