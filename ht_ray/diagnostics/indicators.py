"""All indicators of one network on one fixed batch, as plain numbers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ht_ray._checks import check_choice, check_number
from ht_ray.diagnostics._measuring import Loss, accumulator, count, measuring, run, take, trainable
from ht_ray.diagnostics.curvature import hessian_eigenvalues
from ht_ray.diagnostics.features import FeatureRecord, feature_recorder, ranks, zero_activation_ratio
from ht_ray.diagnostics.gradients import gradient_covariance, loss_gradients
from ht_ray.diagnostics.probe import OptimizerMaker, probe_loss
from ht_ray.diagnostics.units import ActivationRecord, activation_recorder
from ht_ray.diagnostics.weights import weight_distance, weight_magnitude
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.fresh import fresh_weights
from ht_ray.mechanisms.weights.rng import generator
from ht_ray.methods.method import Inputs

__all__ = ["INDICATORS", "INDICATOR_GROUPS", "IndicatorConfig", "Indicators"]

_MOST_EIGENVALUES = 10

#: The names of a group's indicators, by the name of the group in `IndicatorConfig.names`.
INDICATOR_GROUPS: dict[str, tuple[str, ...]] = {
    "weights": ("weight_magnitude", "weight_distance"),
    "features": ("zero_activation_ratio", "srank", "effective_rank", "stable_rank"),
    "units": ("dormant_ratio", "dead_unit_ratio"),
    "gradients": ("zero_gradient_ratio", "gradient_norm"),
    "curvature": (
        "hessian_max",
        *(f"hessian_{i}" for i in range(2, _MOST_EIGENVALUES + 1)),
        "hessian_min",
        "hessian_residual",
    ),
    "covariance": ("gradient_cosine", "gradient_interference"),
    "probe": ("probe_loss", "probe_baseline", "probe_gap"),
}

#: What to call an indicator in a figure, by its name.
INDICATORS: dict[str, str] = {
    "weight_magnitude": "Weight magnitude",
    "weight_distance": "Weight distance from initialisation",
    "zero_activation_ratio": "Zero activations of the features",
    "srank": "Feature rank (srank)",
    "effective_rank": "Effective rank of the features",
    "stable_rank": "Stable rank of the features",
    "dormant_ratio": "Dormant units",
    "dead_unit_ratio": "Units that never fire",
    "zero_gradient_ratio": "Zero gradients of the features",
    "gradient_norm": "Gradient norm",
    "hessian_max": "Largest Hessian eigenvalue",
    **{f"hessian_{i}": f"Hessian eigenvalue {i}" for i in range(2, _MOST_EIGENVALUES + 1)},
    "hessian_min": "Smallest Hessian eigenvalue seen",
    "hessian_residual": "Largest error bound of the Hessian eigenvalues",
    "gradient_cosine": "Cosine between samples' gradients",
    "gradient_interference": "Interfering pairs of samples",
    "probe_loss": "Loss reached on new labels",
    "probe_baseline": "Loss a fresh network reaches on new labels",
    "probe_gap": "Loss on new labels above a fresh network's",
}


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
'gradients', 'curvature', 'covariance', 'probe'. Did you mean 'features'?
    """

    every: int = 0
    """Epochs from one measurement to the next; 0 measures nothing."""
    samples: int = 512
    """Training samples in the fixed batch; 512 is the paper's least."""
    names: tuple[str, ...] = ("weights", "features", "units", "gradients")
    """Groups of indicators: weights, features, units, gradients; and, at a higher price: curvature (at most
    `hessian_iterations` products, each a few times the price of a training step on the fixed batch, and as many copies
    of the network held), covariance (of single samples' gradients), probe (`probe_steps` of training)."""
    srank_delta: float = 0.01
    """Share of the sum of singular values that srank leaves out."""
    dormant_threshold: float = 0.025
    """A unit is dormant whose activity is at most this share of its layer's average."""
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
        check_number("IndicatorConfig.every", self.every, low=0, integer=True)
        check_number("IndicatorConfig.samples", self.samples, low=2, integer=True)
        for name in self.names:
            check_choice("IndicatorConfig.names", name, INDICATOR_GROUPS)
        if not self.names or len(set(self.names)) < len(self.names):
            raise SettingError(
                f"IndicatorConfig.names = {self.names!r}: accepted are one or more different groups; "
                "IndicatorConfig.every = 0 measures nothing."
            )
        check_number("IndicatorConfig.srank_delta", self.srank_delta, low=0, high=1, low_open=True, high_open=True)
        check_number("IndicatorConfig.dormant_threshold", self.dormant_threshold, low=0)
        check_number("IndicatorConfig.eigenvalues", self.eigenvalues, low=1, high=_MOST_EIGENVALUES, integer=True)
        check_number("IndicatorConfig.hessian_iterations", self.hessian_iterations, low=self.eigenvalues, integer=True)
        check_number("IndicatorConfig.covariance_samples", self.covariance_samples, low=2, integer=True)
        check_number("IndicatorConfig.probe_steps", self.probe_steps, low=1, integer=True)
        check_number("IndicatorConfig.probe_batch_size", self.probe_batch_size, low=1, integer=True)
        check_number("IndicatorConfig.chunk_size", self.chunk_size, low=1, integer=True)


class Indicators:
    """Measures one network on one fixed batch, again and again, and leaves no trace in it.

    Everything is measured in evaluation mode: BatchNorm uses its running statistics, dropout is off. Modes, parameters,
    gradients, buffers, hooks and the global generators are as before afterwards, errors included.

    Parameters
    ----------
    config
        What is measured.
    module
        The network as initialised: its weights are noted, for their distance. A loop whose network is exchanged assigns
        the attribute of this name.
    inputs, labels
        Samples as the network takes them, of which ``config.samples`` are drawn with `seed` (all, if there are fewer).
        They stay where they are, and are moved for a measurement if the network is elsewhere.
    backbone
        The sub-module whose output are the features, or its name. None: ``module.backbone`` if there is one, otherwise
        the features are the input of the head (see `ht_ray.mechanisms.find_head`).
    make_optimizer
        For the probe: makes an optimiser of given parameters, or an optimiser to make others like.
    num_classes
        Of the probe's random labels.
    seed
        The run's seed.
    loss
        Maps outputs and labels to the mean loss of a batch.
    fresh
        For the probe: a freshly initialised network, or what makes one; None if `module`'s layers can initialise
        themselves anew.

    Raises
    ------
    SettingError
        If what the configured groups need is missing.

    Examples
    --------
    >>> from collections import OrderedDict
    >>> net = nn.Sequential(OrderedDict(backbone=nn.Sequential(nn.Linear(4, 8), nn.ReLU()), head=nn.Linear(8, 2)))
    >>> inputs, labels = torch.randn(16, 4), torch.randint(2, (16,))
    >>> indicators = Indicators(IndicatorConfig(every=2), net, inputs, labels, num_classes=2, seed=0)
    >>> [epoch for epoch in range(1, 6) if indicators.due(epoch, last=epoch == 5)]
    [2, 4, 5]
    >>> values = indicators.measure()
    >>> list(values)  # doctest: +NORMALIZE_WHITESPACE
    ['weight_magnitude', 'weight_distance', 'zero_activation_ratio', 'srank', 'effective_rank', 'stable_rank',
     'dormant_ratio', 'dead_unit_ratio', 'zero_gradient_ratio', 'gradient_norm']
    >>> values["weight_distance"]
    0.0
    """

    def __init__(
        self,
        config: IndicatorConfig,
        module: nn.Module,
        inputs: Inputs,
        labels: Tensor,
        *,
        backbone: nn.Module | str | None = None,
        make_optimizer: OptimizerMaker | None = None,
        num_classes: int,
        seed: int,
        loss: Loss = cross_entropy,
        fresh: nn.Module | Callable[[], nn.Module] | None = None,
    ) -> None:
        if len(labels) != count(inputs):
            raise SettingError(f"Indicators: {len(labels)} labels for {count(inputs)} inputs: accepted is one each.")
        check_number("Indicators: samples in the batch", len(labels), low=2, integer=True)
        check_number("Indicators: num_classes", num_classes, low=1, integer=True)
        check_number("Indicators: seed", seed, integer=True)
        if {"features", "gradients"} & set(config.names):
            with feature_recorder(module, backbone):
                pass  # which raises if there is no such backbone
        if "probe" in config.names:
            if make_optimizer is None:
                raise SettingError("Indicators: the group 'probe' needs make_optimizer.")
            if fresh is None:
                try:
                    fresh_weights(module, seed=0)
                except ValueError as error:
                    raise SettingError(f"Indicators: the group 'probe' needs fresh: {error}") from error
        self.config = config
        self.module = module
        self.backbone = backbone
        self.make_optimizer = make_optimizer
        self.num_classes = num_classes
        self.seed = seed
        self.loss = loss
        self.fresh = fresh
        #: The initial values of the trainable parameters, by name.
        self.initial = {name: parameter.detach().clone() for name, parameter in trainable(module).items()}
        self._probe_baseline: float | None = None
        if len(labels) > config.samples:
            order = torch.randperm(len(labels), generator=generator(seed, "indicators: batch"))
            drawn = order[: config.samples].to(labels.device)
            inputs, labels = take(inputs, drawn), labels[drawn]
        self.inputs = inputs
        self.labels = labels

    def due(self, epoch: int, *, last: bool = False) -> bool:
        """Return whether to measure after `epoch`, counted from 1: each ``config.every``, and the last of a phase."""
        return self.config.every > 0 and (last or epoch % self.config.every == 0)

    # Not in inference mode, whose tensors no gradient can pass through.
    @torch.inference_mode(False)
    def measure(self) -> dict[str, float]:
        """Return the value of every indicator of the configured groups, by its name in `INDICATORS`.

        Values that are not defined are NaN: of a network whose activations are not finite, of units where no
        activation is a module, of the distance where no parameter is left of the initial ones.
        """
        config = self.config
        home = next(iter((*self.module.parameters(), *self.module.buffers())), self.labels).device
        inputs: Inputs = (
            tuple(x.to(home) for x in self.inputs) if isinstance(self.inputs, tuple) else self.inputs.to(home)
        )
        labels = self.labels.to(home)
        values: dict[str, Tensor] = {}
        if "weights" in config.names:
            values["weight_magnitude"] = weight_magnitude(self.module)["all"]
            values["weight_distance"] = weight_distance(self.module, self.initial)["all"]
        values |= self._of_one_pass(inputs, labels)
        if "curvature" in config.names:
            curvature = hessian_eigenvalues(
                self.module,
                inputs,
                labels,
                k=config.eigenvalues,
                iterations=config.hessian_iterations,
                seed=self.seed,
                loss=self.loss,
                chunk_size=config.chunk_size,
            )
            largest = INDICATOR_GROUPS["curvature"][: config.eigenvalues]
            values |= dict(zip(largest, curvature.values, strict=False))  # a tiny network has fewer
            values["hessian_min"] = curvature.smallest
            values["hessian_residual"] = curvature.residuals.max()
        if "covariance" in config.names:
            covariance = gradient_covariance(
                self.module, inputs, labels, samples=config.covariance_samples, loss=self.loss
            )
            values["gradient_cosine"] = covariance.cosine
            values["gradient_interference"] = covariance.interference
        if "probe" in config.names:
            values["probe_loss"] = self._probe(inputs, fresh=False)
            if self._probe_baseline is None:
                fresh = self.fresh if self.fresh is not None else True
                self._probe_baseline = float(self._probe(inputs, fresh=fresh))
            values["probe_baseline"] = torch.tensor(self._probe_baseline)
            values["probe_gap"] = values["probe_loss"] - self._probe_baseline
        wide = accumulator(home)
        numbers = torch.stack([value.to(home, wide) for value in values.values()]).tolist()
        return dict(zip(values, numbers, strict=True))

    def _of_one_pass(self, inputs: Inputs, labels: Tensor) -> dict[str, Tensor]:
        """Return the indicators of features, units and gradients, which one pass over the batch serves."""
        config = self.config
        values: dict[str, Tensor] = {}
        units: ActivationRecord | None = None
        features: FeatureRecord | None = None
        gradients: dict[str, Tensor] = {}
        with ExitStack() as stack:
            if "units" in config.names:
                units = stack.enter_context(activation_recorder(self.module))
            if "features" in config.names:
                features = stack.enter_context(feature_recorder(self.module, self.backbone))
            if "gradients" in config.names:
                zero_ratio, norm = loss_gradients(
                    self.module,
                    inputs,
                    labels,
                    backbone=self.backbone,
                    loss=self.loss,
                    chunk_size=config.chunk_size,
                )
                gradients = {"zero_gradient_ratio": zero_ratio, "gradient_norm": norm}
            elif units is not None or features is not None:
                with measuring(self.module):
                    run(self.module, inputs, config.chunk_size)
        if features is not None:
            matrix = features.matrix()
            values["zero_activation_ratio"] = zero_activation_ratio(matrix)
            values |= ranks(matrix, config.srank_delta)._asdict()
        if units is not None:
            ratios = units.dormant_ratios((config.dormant_threshold, 0.0))
            values["dormant_ratio"] = ratios[config.dormant_threshold]["all"]
            values["dead_unit_ratio"] = ratios[0.0]["all"]
        return values | gradients

    def _probe(self, inputs: Inputs, fresh: nn.Module | Callable[[], nn.Module] | bool) -> Tensor:
        assert self.make_optimizer is not None
        return probe_loss(
            self.module,
            self.make_optimizer,
            inputs,
            num_classes=self.num_classes,
            steps=self.config.probe_steps,
            batch_size=self.config.probe_batch_size,
            seed=self.seed,
            fresh=fresh,
            loss=self.loss,
            chunk_size=self.config.chunk_size,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what to continue with: the initial weights, and what the fresh network reached, once it is known."""
        return {"initial": dict(self.initial), "probe_baseline": self._probe_baseline}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.initial = {name: tensor.detach().clone() for name, tensor in state["initial"].items()}
        self._probe_baseline = state["probe_baseline"]
