"""Networks of an RLModule that methods act on: online ones, their targets, and what a batch gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PREDS, DefaultDQNRLModule
from ray.rllib.algorithms.sac.default_sac_rl_module import DefaultSACRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.rl_module.apis import QNetAPI, TargetNetworkAPI, ValueFunctionAPI
from torch import Tensor, nn

from ht_ray.errors import SettingError

__all__ = [
    "Networks",
    "OnlineTargetPair",
    "all_networks",
    "head_parts",
    "input_columns",
    "network_pair",
    "value_streams",
]


def value_streams(rl_module: Any) -> list[tuple[nn.Module, list[nn.Module]]]:
    """Return each encoder of values with its heads, of DQN's and SAC's modules; of others there are none known."""
    if isinstance(rl_module, DefaultDQNRLModule):
        return [(rl_module.encoder, [rl_module.af, rl_module.vf] if rl_module.uses_dueling else [rl_module.af])]
    if isinstance(rl_module, DefaultSACRLModule):
        critics: list[tuple[nn.Module, list[nn.Module]]] = [(rl_module.qf_encoder, [rl_module.qf])]
        return [*critics, (rl_module.qf_twin_encoder, [rl_module.qf_twin])] if rl_module.twin_q else critics
    return []


def input_columns(rl_module: Any) -> tuple[str, ...]:
    """Return the names of a batch's columns that the online networks take: SAC's critics of continuous actions two."""
    with_actions = isinstance(rl_module, DefaultSACRLModule) and not hasattr(rl_module.action_space, "n")
    return (Columns.OBS, Columns.ACTIONS) if with_actions else (Columns.OBS,)


class Networks(nn.ModuleDict):
    """Online networks of an RLModule as one network, over the same weights.

    Called with the `columns` of a batch, it returns what the networks make of them: that is how ReDo and continual
    backprop find hidden units, and how ReDo scores them. Of own modules, those are understood that have RLlib's
    ``ValueFunctionAPI`` or ``QNetAPI``.

    Parameters
    ----------
    networks : mapping of str to Module
        By name.
    rl_module : RLModule
        Whose they are.
    """

    def __init__(self, networks: Mapping[str, nn.Module], rl_module: Any) -> None:
        super().__init__(networks)
        #: Names of a batch's columns that are its inputs.
        self.columns = input_columns(rl_module)
        self._whose = (rl_module,)  # in a tuple, or it would be one of the networks

    def forward(self, obs: Tensor) -> tuple[Tensor, ...]:
        """Return the heads' outputs."""
        return self._compute({Columns.OBS: obs})

    def _compute(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        (module,) = self._whose
        if module.is_stateful():
            raise SettingError("methods that look at hidden units do not handle recurrent networks")
        if streams := value_streams(module):
            outputs = []
            for encoder, heads in streams:
                features = encoder(batch)[ENCODER_OUT]
                outputs += [head(features) for head in heads]
            return tuple(outputs)
        if isinstance(module, ValueFunctionAPI):
            outs = module._forward_train(batch)
            values = module.compute_values(batch, embeddings=outs.get(Columns.EMBEDDINGS))
            return outs[Columns.ACTION_DIST_INPUTS], values
        if isinstance(module, QNetAPI):
            return (module.compute_q_values(batch)[QF_PREDS],)
        raise SettingError(
            f"methods that look at hidden units need an RLModule with RLlib's ValueFunctionAPI or QNetAPI, which "
            f"{type(module).__name__} has not"
        )


class _Critics(Networks):
    """Critics of continuous actions."""

    def forward(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self._compute({Columns.OBS: obs, Columns.ACTIONS: actions})


class OnlineTargetPair(NamedTuple):
    """Online networks of an RLModule and their targets: two modules of one structure."""

    online: Networks
    target: nn.ModuleDict


def network_pair(rl_module: Any) -> OnlineTargetPair:
    """Return the online networks of an RLModule and their targets.

    Nothing is copied. DQN has an encoder, an advantage head ``af`` and, if dueling, a value head ``vf``; SAC has
    ``qf_encoder``, ``qf``, ``qf_twin_encoder`` and ``qf_twin``: its policy has no target.

    Parameters
    ----------
    rl_module : RLModule
        With target networks made (`ray.rllib.core.rl_module.apis.TargetNetworkAPI`).

    Returns
    -------
    OnlineTargetPair
        By the online networks' names in `rl_module`, with ``_`` for the dots of nested ones.
    """
    names = {part: name.replace(".", "_") for name, part in rl_module.named_modules()}
    pairs = rl_module.get_target_network_pairs()
    found = [names.get(online, f"network_{number}") for number, (online, _) in enumerate(pairs)]
    cls = _Critics if Columns.ACTIONS in input_columns(rl_module) else Networks
    return OnlineTargetPair(
        cls({name: online for name, (online, _) in zip(found, pairs, strict=True)}, rl_module),
        nn.ModuleDict({name: target for name, (_, target) in zip(found, pairs, strict=True)}),
    )


def all_networks(rl_module: Any) -> Networks:
    """Return all networks of an RLModule but its targets: of PPO, APPO and IMPALA ``encoder``, ``pi`` and ``vf``.

    Parameters that are the RLModule's own, in none of its networks, are not among them.
    """
    pairs = rl_module.get_target_network_pairs() if isinstance(rl_module, TargetNetworkAPI) else ()
    targets = [target for _, target in pairs]
    children = {
        name: part
        for name, part in rl_module.named_children()
        if part not in targets and any(True for _ in part.parameters())
    }
    return Networks(children, rl_module)


def head_parts(networks: nn.Module) -> tuple[str, ...]:
    """Return the names of the networks that are no encoder, by their names.

    Raises
    ------
    SettingError
        If that tells no head from a backbone.
    """
    names = [name for name, _ in networks.named_children()]
    heads = tuple(name for name in names if "encoder" not in name)
    if not heads or heads == tuple(names):
        raise SettingError(
            f"reset_parts: the networks {', '.join(map(repr, names))} do not tell which is the head: name the parts, "
            "also within a network, as in reset_parts=('q_net.head',)."
        )
    return heads
