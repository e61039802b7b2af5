"""Training that can be left between two epochs of an experience, and taken up again there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ht_ray.errors import Interrupted

from .loading import TaskLoader
from .plugins import MethodPlugin

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate as _Template
else:
    _Template = object  # a mixin: the template comes after it

__all__ = ["Interruptible"]


class Interruptible(_Template):
    """Mixin for strategies over `InMemoryLoading`: ``train`` can be interrupted after an epoch, and goes on there.

    An interrupted experience has not ended: what plugins do after an experience is not done. Training on it again
    leaves out what they do before one, and goes on with the next epoch. Plugins of `strategies` know of that; of
    others it is asked that what they need is made before an epoch, or held by themselves.
    """

    # Set from signal handlers and other threads: a bare attribute, as a lock may be held by who is interrupted.
    _asked = False
    _stop_training: bool
    #: Which experience was left before its end; None between experiences.
    _underway: int | None = None

    def interrupt(self) -> None:
        """Ask ``train`` to raise `Interrupted` after an epoch; may be called at any time, from anywhere.

        It is raised after the epoch that runs, or that runs next, once its measurements are made. After the last epoch
        of an experience there is nothing to interrupt: the experience ends, and the next one is left after its first
        epoch. However often it is called, that happens once. Data that is not held in memory is trained on to the
        experience's end.
        """
        self._asked = True

    def position(self) -> dict[str, int]:
        """Return where in an experience training was left; empty between experiences."""
        if self._underway is None:
            return {}
        clock = self.clock
        return {
            "experience": self._underway,
            "epochs": clock.train_exp_epochs,
            "iterations": clock.train_exp_iterations,
        }

    def load_position(self, position: Mapping[str, int]) -> None:
        """Continue from `position`."""
        if position:
            self._underway = position["experience"]
            self.clock.train_exp_epochs = position["epochs"]
            self.clock.train_exp_iterations = position["iterations"]

    def _before_training_exp(self, **kwargs: Any) -> None:
        if self._underway is None:
            super()._before_training_exp(**kwargs)
            return
        given = self.experience.current_experience
        if given != self._underway:
            raise ValueError(f"experience {self._underway} was interrupted: train on it before experience {given}")
        self._underway = None
        self._before_train_dataset_adaptation(**kwargs)
        self.train_dataset_adaptation(**kwargs)
        self._after_train_dataset_adaptation(**kwargs)
        self.make_train_dataloader(**kwargs)
        self.dataloader.loader.epoch = self.clock.train_exp_epochs + 1
        for plugin in self.plugins:
            if isinstance(plugin, MethodPlugin):
                plugin.resume(self)

    def _train_exp(self, experience: Any, eval_streams: Any = None, **kwargs: Any) -> None:
        # Avalanche's own loop counts from 0, and can only be left for good.
        while self.clock.train_exp_epochs < self.train_epochs:
            self._before_training_epoch(**kwargs)
            if self._stop_training:
                self._stop_training = False
                break
            self.training_epoch(**kwargs)
            self._after_training_epoch(**kwargs)
            if self._asked and self._can_be_left():
                self._asked = False
                self._underway = experience.current_experience
                self._train_cleanup()
                raise Interrupted(f"after epoch {self.clock.train_exp_epochs} of experience {self._underway}")

    def _can_be_left(self) -> bool:
        ends = self._stop_training or self.clock.train_exp_epochs >= self.train_epochs
        # Another loader may have drawn what cannot be drawn again.
        return not ends and isinstance(self.dataloader, TaskLoader)
