"""BBF's restart: the backbone is shrunk and perturbed, the head starts anew, in both networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from ht_ray.mechanisms import derive_seed
from ht_ray.methods import HeadReset, ShrinkPerturb

__all__ = ["Restart"]


class Restart:
    """Shrink & Perturb of ``backbone`` and Head Reset of ``head``, of a network and, with other draws, of its target.

    Parameters
    ----------
    network
        Its optimiser forgets the head's parameters.
    target
        None: there is none, or it is left alone. Its parameters must not be frozen, which is to leave them alone.
    ratio
        The share of the backbone that is taken from fresh weights. Default 0.5.
    optimizer_state
        ``"keep"`` (default) or ``"clear"`` the optimiser's state of the backbone.
    seed
        Of the draws.

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

    def __init__(
        self,
        network: nn.Module,
        target: nn.Module | None = None,
        *,
        ratio: float = 0.5,
        optimizer_state: Literal["keep", "clear"] = "keep",
        seed: int = 0,
    ) -> None:
        self._methods: dict[str, ShrinkPerturb | HeadReset] = {}
        for name, module in (("network", network), ("target", target)):
            if module is None:
                continue
            own = derive_seed(seed, f"restart: {name}")
            self._methods[f"{name} backbone"] = ShrinkPerturb(
                module.get_submodule("backbone"),
                ratio=ratio,
                toward="fresh",
                optimizer_state=optimizer_state,
                seed=own,
            )
            self._methods[f"{name} head"] = HeadReset(module, head="head", toward="fresh", seed=own)

    @property
    def applications(self) -> int:
        """How often it was applied."""
        return self._methods["network head"].applications

    def apply(self, optimizer: Optimizer) -> None:
        """Restart now; `optimizer` is the network's."""
        for method in self._methods.values():
            method.apply(None, optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return counters to continue from; settings are not part of it."""
        return {name: method.state_dict() for name, method in self._methods.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        for name, method in self._methods.items():
            method.load_state_dict(state[name])
