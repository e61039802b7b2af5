"""An agent's online and target networks as a hare and its tortoise, and what acts on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ht_ray.errors import SettingError
from ht_ray.methods import HeadReset, ShrinkPerturb, Tortoise

__all__ = ["Pair", "head_parts", "network_pair"]


def network_pair(rl_module: Any) -> tuple[nn.ModuleDict, nn.ModuleDict]:
    """Return the online networks of an RLModule and their targets, as two modules of one structure.

    Nothing is copied. DQN has an encoder, an advantage head ``af`` and, if dueling, a value head ``vf``; SAC has
    ``qf_encoder``, ``qf``, ``qf_twin_encoder`` and ``qf_twin``: its policy has no target.

    Parameters
    ----------
    rl_module
        With target networks made (`ray.rllib.core.rl_module.apis.TargetNetworkAPI`).

    Returns
    -------
    tuple of ModuleDict
        By the online networks' names in `rl_module`, with ``_`` for the dots of nested ones.
    """
    names = {part: name.replace(".", "_") for name, part in rl_module.named_modules()}
    hare, target = nn.ModuleDict(), nn.ModuleDict()
    for number, (main_net, target_net) in enumerate(rl_module.get_target_network_pairs()):
        name = names.get(main_net, f"network_{number}")
        hare[name], target[name] = main_net, target_net
    return hare, target


def head_parts(hare: nn.Module) -> tuple[str, ...]:
    """Return the names of the networks that are no encoder, by their names.

    Raises
    ------
    SettingError
        If that tells no head from a backbone.
    """
    names = [name for name, _ in hare.named_children()]
    heads = tuple(name for name in names if "encoder" not in name)
    if not heads or heads == tuple(names):
        raise SettingError(
            f"reset_parts: the networks {', '.join(map(repr, names))} do not tell which is the head: name the parts, "
            "also within a network, as in reset_parts=('q_net.head',)."
        )
    return heads


@dataclass
class Pair:
    """One RLModule's online and target networks, with what acts on them and what is counted."""

    tortoise: Tortoise
    """Follows in the target networks' own tensors; its ``hare`` are the online networks."""
    shrink_perturb: ShrinkPerturb | None = None
    head_resets: tuple[HeadReset, ...] = ()
    """One for each part."""
    initial: dict[str, Tensor] = field(default_factory=dict)
    """Initial weights, if the indicators are to tell the distance from them; by their names."""
    steps: int = 0
    """Optimiser steps so far."""

    @property
    def hare(self) -> nn.Module:
        """The online networks."""
        return self.tortoise.hare

    def moves(self, gradients: Mapping[Any, Any]) -> bool:
        """Return whether `gradients`, by parameter, have one of the online networks'."""
        return any(parameter in gradients for parameter in self.hare.parameters())

    @property
    def head_reset_count(self) -> int:
        """How often the head was reset."""
        return self.head_resets[0].applications if self.head_resets else 0

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from, without the networks themselves: the RLModule has them."""
        return {
            "steps": self.steps,
            "updates": self.tortoise.updates,
            "resets": self.tortoise.resets,
            "initial": dict(self.initial),
            "shrink_perturb": self.shrink_perturb.state_dict() if self.shrink_perturb is not None else {},
            "head_resets": [method.state_dict() for method in self.head_resets],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; methods that were off when it was taken begin anew."""
        self.steps = int(state["steps"])
        self.tortoise.updates, self.tortoise.resets = int(state["updates"]), int(state["resets"])
        self.initial.update({name: tensor for name, tensor in state["initial"].items() if name in self.initial})
        if self.shrink_perturb is not None and state["shrink_perturb"]:
            self.shrink_perturb.load_state_dict(state["shrink_perturb"])
        if len(self.head_resets) == len(state["head_resets"]):
            for method, own in zip(self.head_resets, state["head_resets"], strict=True):
                method.load_state_dict(own)
