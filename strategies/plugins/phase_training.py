"""The paper's way of training a phase, as a plugin."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from avalanche.training.plugins import LRSchedulerPlugin, SupervisedPlugin
from torch import nn

from ht_ray._checks import check_number
from ht_ray.errors import SettingError
from ht_ray.mechanisms import derive_seed, isolated_rng
from ht_ray.mechanisms.weights.structure import HeldParameters
from ht_ray.vision.training.optimizer import set_learning_rate, warmup_factor

__all__ = ["PhaseTrainingPlugin"]


class PhaseTrainingPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Fresh optimiser state, linear warm-up and clipped gradients in every experience (arXiv 2406.02596, table 3).

    Parameters
    ----------
    warmup_ratio
        Share of an experience's steps over which the learning rate rises linearly from 0. Default 0.1. With 0 the
        plugin leaves the learning rate alone, to a scheduler, say.
    clip
        Largest gradient norm; None for no clipping. Default 0.5.
    fresh_optimizer
        Whether the optimiser forgets its state before each experience. Default True.
    seed
        If given, torch's global generators (dropout) are seeded from it and the position in the run before each epoch,
        and put back after: training does not depend on what was drawn before, and leaks nothing.

    Raises
    ------
    SettingError
        If a setting is out of its range; before training, if a scheduler's plugin sets the learning rate as well.
    """

    def __init__(
        self,
        *,
        warmup_ratio: float = 0.1,
        clip: float | None = 0.5,
        fresh_optimizer: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_number("PhaseTrainingPlugin: warmup_ratio", warmup_ratio, low=0, high=1)
        if clip is not None:
            check_number("PhaseTrainingPlugin: clip", clip, low=0, low_open=True)
        self.warmup_ratio = warmup_ratio
        self.clip = clip
        self.fresh_optimizer = fresh_optimizer
        self.seed = seed
        self._total = 0
        self._rng = ExitStack()
        self._parameters = HeldParameters()

    def __getstate__(self) -> dict[str, Any]:
        # Between epochs, where alone a strategy can be saved, nothing is on the stack.
        return {**self.__dict__, "_rng": ExitStack(), "_parameters": HeldParameters()}

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        if self.warmup_ratio and any(isinstance(plugin, LRSchedulerPlugin) for plugin in strategy.plugins):
            raise SettingError(
                owner="PhaseTrainingPlugin",
                field="warmup_ratio",
                value=self.warmup_ratio,
                reason=": the strategy has an LRSchedulerPlugin, and the warm-up sets the learning rate of every step: "
                "accepted is 0, which leaves it to the scheduler.",
            )

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self.fresh_optimizer:
            strategy.make_optimizer(reset_optimizer_state=True)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        # Here, and not before the experience, as other plugins exchange the loader there.
        self._total = len(strategy.dataloader) * strategy.train_epochs
        if self.seed is not None:
            self._rng.close()
            phase, epoch = strategy.clock.train_exp_counter, strategy.clock.train_exp_epochs + 1
            self._rng.enter_context(isolated_rng(derive_seed(self.seed, "dropout", phase, epoch)))

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if self.warmup_ratio == 0:
            return
        step = strategy.clock.train_exp_iterations
        set_learning_rate(strategy.optimizer, warmup_factor(step, self._total, self.warmup_ratio))

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self._parameters(strategy.model), self.clip)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._rng.close()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._rng.close()
