"""Restart of BBF: the backbone is shrunk and perturbed, and the head drawn afresh, in both networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ht_ray.mechanisms import derive_seed
from ht_ray.methods import HeadReset, Method, MethodSettings, ShrinkPerturb, Tortoise, setting

__all__ = ["Restart"]


class Restart(Method):
    """Shrink & Perturb of ``backbone`` and Head Reset of ``head``, of a network and, with other draws, of its target.

    Parameters
    ----------
    module : nn.Module
        The network; the optimiser forgets its head's parameters.
    target : nn.Module or None, default None
        None: there is none, or it is left alone. Its parameters must not be frozen, which is to leave them alone.
    due : callable
        Whether there is a restart after so many optimiser steps; by default there is none.
    settings, seed, **changes
        As in `Method`; the seed is that of the draws.

    Examples
    --------
    >>> import torch
    >>> from ht_ray.agents.networks.q_network import QNetwork
    >>> network = QNetwork(2)
    >>> before = network.backbone[0].weight.clone()
    >>> restart = Restart(network, ratio=0.0)
    >>> restart.apply(torch.optim.Adam(network.parameters()))
    >>> torch.equal(network.backbone[0].weight, before), restart.applications
    (True, 1)
    """

    name = "restart"
    title = "Restart"
    rank = 3
    capturable = True

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Settings; the defaults are the paper's."""

        ratio: float = setting(0.5, "Share of the backbone that is taken from fresh weights.", low=0, high=1)
        optimizer_state: Literal["keep", "clear"] = setting(
            "keep", "What happens to the optimiser's state of the backbone."
        )

    settings: Settings

    def __init__(
        self,
        module: nn.Module,
        settings: Any = None,
        *,
        target: nn.Module | None = None,
        due: Callable[[int], bool] = lambda steps: False,
        seed: int = 0,
        **changes: Any,
    ) -> None:
        super().__init__(module, settings, seed=seed, **changes)
        self.due = due
        #: Optimiser steps so far.
        self.steps = 0
        self._parts: dict[str, ShrinkPerturb | HeadReset] = {}
        for name, network in (("network", module), ("target", target)):
            if network is None:
                continue
            own = derive_seed(seed, f"restart: {name}")
            self._parts[f"{name} backbone"] = ShrinkPerturb(
                network.get_submodule("backbone"),
                ratio=self.settings.ratio,
                toward="fresh",
                optimizer_state=self.settings.optimizer_state,
                seed=own,
            )
            self._parts[f"{name} head"] = HeadReset(network, head="head", toward="fresh", seed=own)

    @property
    def applications(self) -> int:
        """How often it was applied."""
        return self._parts["network head"].applications

    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Count an optimiser step, and restart if that is due."""
        self.steps += 1
        if self.due(self.steps):
            self.apply(optimizer)

    def apply(self, optimizer: Any) -> None:
        """Restart now; `optimizer` is the network's."""
        for part in self._parts.values():
            part.apply(None, optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return counters to continue from; settings are not part of it."""
        return {"steps": self.steps, **{name: part.state_dict() for name, part in self._parts.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.steps = int(state["steps"])
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
