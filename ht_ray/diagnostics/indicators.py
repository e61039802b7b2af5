"""Indicators of one network on one fixed batch, measured again and again as it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ht_ray._checks import check_number
from ht_ray.diagnostics._measuring import Loss, accumulator, count, take, trainable
from ht_ray.diagnostics.features import feature_recorder
from ht_ray.diagnostics.probe import OptimizerMaker
from ht_ray.diagnostics.registry import INDICATORS, IndicatorConfig, Measurement
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.fresh import fresh_weights
from ht_ray.mechanisms.weights.rng import generator
from ht_ray.methods.method import Inputs

__all__ = ["Indicators"]


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
        themselves again.

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
     'dormant_ratio', 'dead_unit_ratio', 'zero_gradient_ratio', 'gradient_norm', 'grama_ratio']
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
        home = next(iter((*self.module.parameters(), *self.module.buffers())), self.labels).device
        given = {field.name: getattr(self, field.name) for field in fields(Measurement)}
        inputs = tuple(x.to(home) for x in self.inputs) if isinstance(self.inputs, tuple) else self.inputs.to(home)
        measurement = Measurement(**{**given, "inputs": inputs, "labels": self.labels.to(home)})
        if self._probe_baseline is not None:
            measurement.probe_baseline = self._probe_baseline
        values: dict[str, Tensor] = {}
        for name, indicator in INDICATORS.items():
            value = indicator.measure(measurement) if indicator.group in self.config.names else None
            if value is not None:
                values[name] = value
        if "probe" in self.config.names:
            self._probe_baseline = measurement.probe_baseline
        wide = accumulator(home)
        numbers = torch.stack([value.to(home, wide) for value in values.values()]).tolist()
        return dict(zip(values, numbers, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Return what to continue with: the initial weights, and what the fresh network reached, once it is known."""
        return {"initial": dict(self.initial), "probe_baseline": self._probe_baseline}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.initial = {name: tensor.detach().clone() for name, tensor in state["initial"].items()}
        self._probe_baseline = state["probe_baseline"]
