"""Plasticity indicators as metrics of Avalanche's evaluation."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import OnlineCLExperience
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from ht_ray._checks import check_number
from ht_ray.diagnostics import IndicatorConfig, Indicators
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms import derive_seed, generator, isolated_rng

__all__ = ["PlasticityIndicators", "indicator_metrics"]


@contextmanager
def _transforms_seeded(seed: int) -> Iterator[None]:
    # Transforms may draw from any of the three; training must not notice.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with isolated_rng(seed):
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


class PlasticityIndicators(PluginMetric):
    """The plasticity indicators of the strategy's model, on one batch for the whole run.

    Measured after every ``config.every``-th epoch of an experience and after its last, behind all plugins, in
    evaluation mode and without a trace: training goes on as if nothing had been measured. Of Hare & Tortoise the
    network is the hare, after the reset that was due. Distances are from the weights with which the first experience
    began.

    Each indicator is one value, ``PlasticityIndicator/srank/train_phase/train_stream`` and so on with the names of
    `ht_ray.diagnostics.INDICATORS`, over the number of training iterations. An experience that is stopped early is
    measured at its end. In an online stream a sub-experience, however often it is passed, counts as one epoch.

    Parameters
    ----------
    config
        What is measured and how often. Default: ``IndicatorConfig(every=1)``.
    inputs, labels
        The samples to measure on, as the model takes them; of a multi-task model, `inputs` is a tuple of the inputs and
        the task label of each. None (default): ``config.samples`` of the first experience's training samples, drawn
        with `seed` once its data are adapted and read through their transforms once, with the labels they have there.
    backbone
        The sub-module whose output are the features, or its name. None: ``model.backbone`` if there is one, otherwise
        the features are the input of the head.
    num_classes
        Of the random labels that the group "probe" learns with an optimiser like the strategy's; at most the model's
        outputs. None: those up to the largest label of the samples. Classes that a head masks cannot be learned, and
        make the loss large.
    fresh
        For that group: a freshly initialised network, or what makes one; None if the model's layers can initialise
        themselves.
    seed
        The run's seed. Default 0.

    Raises
    ------
    SettingError
        If a setting is not accepted.

    Examples
    --------
    >>> PlasticityIndicators(IndicatorConfig())
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: PlasticityIndicators: config.every = 0: accepted is a whole number with 1 <= every.
    """

    def __init__(
        self,
        config: IndicatorConfig | None = None,
        *,
        inputs: Tensor | tuple[Tensor, ...] | None = None,
        labels: Tensor | None = None,
        backbone: nn.Module | str | None = None,
        num_classes: int | None = None,
        fresh: nn.Module | Callable[[], nn.Module] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        config = IndicatorConfig(every=1) if config is None else config
        check_number("PlasticityIndicators: config.every", config.every, low=1, integer=True)
        check_number("PlasticityIndicators: seed", seed, integer=True)
        if num_classes is not None:
            check_number("PlasticityIndicators: num_classes", num_classes, low=1, integer=True)
        self._given: tuple[Tensor | tuple[Tensor, ...], Tensor] | None = None
        if inputs is not None and labels is not None:
            sizes = {len(tensor) for tensor in (*(inputs if isinstance(inputs, tuple) else (inputs,)), labels)}
            if len(sizes) > 1 or max(sizes) < 2:
                raise SettingError(
                    f"PlasticityIndicators: inputs and labels of {' and '.join(map(str, sorted(sizes)))} samples: "
                    "accepted is one label (and task label) for each of at least 2 inputs."
                )
            self._given = (inputs, labels)
        elif inputs is not None or labels is not None:
            missing = "labels" if labels is None else "inputs"
            raise SettingError(f"PlasticityIndicators: {missing} = None: accepted are inputs and labels, or neither.")
        self.config = config
        self.backbone = backbone
        self.num_classes = num_classes
        self.fresh = fresh
        self.seed = seed
        #: What measures; None before the first experience.
        self.indicators: Indicators | None = None
        self._values: dict[str, float] = {}

    def result(self) -> dict[str, float]:
        """Return the values last measured, by the indicators' names; empty before."""
        return dict(self._values)

    def reset(self) -> None:
        """Forget samples, initial weights and values: the next experience is the first of a new run."""
        self.indicators = None
        self._values = {}

    def before_training_exp(self, strategy: Any) -> None:
        if self.indicators is not None:
            return
        inputs, labels = self._given or self._drawn(strategy)
        parts = [tensor.to(strategy.device) for tensor in (inputs if isinstance(inputs, tuple) else (inputs,))]
        if _takes_tasks(strategy) and len(parts) < 2:
            raise SettingError(
                "PlasticityIndicators: inputs: accepted for a multi-task model are (inputs, task labels)."
            )
        self.indicators = Indicators(
            self.config,
            strategy.model,
            tuple(parts) if isinstance(inputs, tuple) else parts[0],
            labels.to(strategy.device),
            backbone=self.backbone,
            make_optimizer=strategy.optimizer,
            num_classes=int(labels.max()) + 1 if self.num_classes is None else self.num_classes,
            seed=self.seed,
            fresh=self.fresh,
        )

    def after_training_epoch(self, strategy: Any) -> list[MetricValue]:
        # Avalanche's clock counts the epoch after the metrics have seen its end.
        epoch = strategy.clock.train_exp_epochs + 1
        return self._measure(strategy, epoch, last=epoch == strategy.train_epochs)

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        epoch = strategy.clock.train_exp_epochs
        stopped = 0 < epoch < strategy.train_epochs
        return self._measure(strategy, epoch, last=True) if stopped else []

    def _measure(self, strategy: Any, epoch: int, *, last: bool) -> list[MetricValue]:
        indicators = self.indicators
        if indicators is None:  # the evaluator was not active when the experience began
            return []
        if isinstance(strategy.experience, OnlineCLExperience):
            due = last and indicators.due(strategy.clock.train_exp_counter + 1)
        else:
            due = indicators.due(epoch, last=last)
        if not due:
            return []
        indicators.module = strategy.model
        indicators.make_optimizer = strategy.optimizer
        self._values = indicators.measure()
        return [
            MetricValue(
                self,
                get_metric_name(f"{self}/{name}", strategy, add_task=False),
                value,
                strategy.clock.train_iterations,
            )
            for name, value in self._values.items()
        ]

    def _drawn(self, strategy: Any) -> tuple[Tensor | tuple[Tensor, ...], Tensor]:
        dataset = strategy.adapted_dataset
        if len(dataset) < self.config.samples:
            warnings.warn(
                f"PlasticityIndicators: the first experience has {len(dataset)} samples, "
                f"config.samples = {self.config.samples}: all are used; give inputs and labels for more.",
                SettingWarning,
                stacklevel=2,
            )
        order = torch.randperm(len(dataset), generator=generator(self.seed, "indicators: samples"))
        with _transforms_seeded(derive_seed(self.seed, "indicators: transforms")):
            items = [dataset[item] for item in order[: self.config.samples].tolist()]
        batch = dataset.collate_fn(items)
        return (batch[0], batch[-1]) if _takes_tasks(strategy) else batch[0], batch[1]

    def __str__(self) -> str:
        return "PlasticityIndicator"


def _takes_tasks(strategy: Any) -> bool:
    return is_multi_task_module(strategy.model) and hasattr(strategy.experience, "task_labels")


def indicator_metrics(
    *what: str | IndicatorConfig,
    every: int | None = None,
    inputs: Tensor | tuple[Tensor, ...] | None = None,
    labels: Tensor | None = None,
    backbone: nn.Module | str | None = None,
    num_classes: int | None = None,
    fresh: nn.Module | Callable[[], nn.Module] | None = None,
    seed: int = 0,
) -> list[PluginMetric]:
    """Return metrics of the plasticity indicators for an ``EvaluationPlugin``.

    Parameters
    ----------
    *what
        Names of groups of indicators ("weights", "features", "units", "gradients", "curvature", "covariance",
        "probe"), or one `IndicatorConfig`. Nothing: the groups that `IndicatorConfig` names.
    every
        Epochs from one measurement to the next. Default: as the configuration says, or 1.
    inputs, labels, backbone, num_classes, fresh, seed
        As of `PlasticityIndicators`.

    Raises
    ------
    SettingError
        If a setting is not accepted.

    Examples
    --------
    >>> [metric] = indicator_metrics("weights", "units", every=5)
    >>> metric.config.names, metric.config.every
    (('weights', 'units'), 5)
    """
    configs = [each for each in what if isinstance(each, IndicatorConfig)]
    names = tuple(each for each in what if not isinstance(each, IndicatorConfig))
    if len(configs) > 1 or (configs and names):
        raise SettingError(
            f"indicator_metrics: {len(configs)} configurations and {len(names)} names: accepted are names of groups, "
            "or one IndicatorConfig."
        )
    if configs:
        config = configs[0] if every is None else replace(configs[0], every=every)
    else:
        config = IndicatorConfig(every=1 if every is None else every)
        config = replace(config, names=names) if names else config
    metric = PlasticityIndicators(
        config,
        inputs=inputs,
        labels=labels,
        backbone=backbone,
        num_classes=num_classes,
        fresh=fresh,
        seed=seed,
    )
    return [metric]
