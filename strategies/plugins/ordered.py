"""Plugins that act in a fixed order among each other."""

from __future__ import annotations

from typing import Any, ClassVar

from avalanche.training.plugins import SupervisedPlugin

__all__ = ["OrderedPlugin"]


class OrderedPlugin(SupervisedPlugin):
    """Base of what acts in the order of its `rank`, wherever it stands in the strategy's list of plugins.

    The first of the kind in the list acts for all at each moment. Ranks below 0 are part of the optimiser's step, 0 is
    the tortoise, which follows it, and those above change both networks after it. Before an experience the tortoise
    comes first and `begin_rank` decides.
    """

    rank: ClassVar[int] = 0
    begin_rank: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self._acting: tuple[OrderedPlugin, ...] = ()

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        for plugin in sorted(self.line_up(strategy), key=lambda plugin: plugin.begin_rank):
            plugin.begin(strategy)
        for plugin in self._acting:
            plugin.begun(strategy)

    def line_up(self, strategy: Any) -> list[OrderedPlugin]:
        """Take up the plugins for which this one acts, and return them in the order of the list: all, or none."""
        plugins = [plugin for plugin in strategy.plugins if isinstance(plugin, OrderedPlugin)]
        if plugins[0] is not self:
            plugins = []
        self._acting = tuple(sorted(plugins, key=lambda plugin: plugin.rank))
        return plugins

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        for plugin in self._acting:
            plugin.enter_network(strategy)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        for plugin in self._acting:
            plugin.leave_network(strategy)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        for plugin in self._acting:
            plugin.add_loss(strategy)

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        for plugin in self._acting:
            plugin.prepare_step(strategy)

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        for plugin in self._acting:
            plugin.follow_step(strategy)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        for plugin in self._acting:
            plugin.end_epoch(strategy)

    def begin(self, strategy: Any) -> None:
        """Act before an experience."""

    def begun(self, strategy: Any) -> None:
        """Act before an experience, once all have acted: a head may have been added to the model."""

    def resume(self, strategy: Any) -> None:
        """Act in place of `begin` before an experience goes on that was interrupted: make what no state holds."""

    def enter_network(self, strategy: Any) -> None:
        """Act before the network computes a training batch."""

    def leave_network(self, strategy: Any) -> None:
        """Act after the network has computed a training batch."""

    def add_loss(self, strategy: Any) -> None:
        """Add to the loss of a batch."""

    def prepare_step(self, strategy: Any) -> None:
        """Act when the gradients are there."""

    def follow_step(self, strategy: Any) -> None:
        """Act after the optimiser's step."""

    def end_epoch(self, strategy: Any) -> None:
        """Act after an epoch of an experience."""
