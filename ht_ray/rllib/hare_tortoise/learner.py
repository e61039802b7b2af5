"""Learner mixins: Hare & Tortoise, Shrink & Perturb and Head Reset for DQN-style learners of RLlib.

They decide when; what is done is in `ht_ray.mechanisms`. Everything is counted in optimiser steps. Whatever the order
of inheritance, at one step the order is: the tortoise follows; the indicators are measured; the reset that is due;
then Shrink & Perturb and Head Reset, on both networks alike.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from ray.rllib.algorithms.dqn.dqn_learner import DQNLearner
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis import TargetNetworkAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import nn

from ht_ray.errors import SettingError
from ht_ray.methods import HeadReset, ShrinkPerturb, Tortoise
from ht_ray.rllib.hare_tortoise.network_pair import Pair, head_parts, network_pair
from ht_ray.rllib.indicators import OnlineNetwork, RecentSamples, measure_indicators
from ht_ray.rllib.last_value import LAST

__all__ = [
    "COMPONENT_PAIRS",
    "DISTANCE",
    "HEAD_RESETS",
    "RESETS",
    "SHRINK_PERTURBS",
    "UPDATES",
    "HareTortoiseLearner",
    "HeadResetLearner",
    "PairLearner",
    "ShrinkPerturbLearner",
]

#: The mixins' part of a learner's state.
COMPONENT_PAIRS = "hare_tortoise"

#: Metrics of a module: optimiser steps that the tortoise followed, resets, and what else was applied, over its life.
UPDATES = "tortoise_updates"
RESETS = "tortoise_resets"
SHRINK_PERTURBS = "shrink_perturbs"
HEAD_RESETS = "head_resets"
#: Euclidean distance between online and target networks, as of the last step that was a multiple of 100.
DISTANCE = "hare_tortoise_distance"
_DISTANCE_INTERVAL = 100


class PairLearner(TorchLearner):
    """What the mixins share: online and target networks as pairs, steps counted, state, metrics, indicators."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if DQNLearner in order and order.index(DQNLearner) < order.index(PairLearner):
            raise TypeError(
                f"{cls.__name__}: put the mixins before the learner: class L(HareTortoiseLearner, DQNTorchLearner)"
            )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._pairs: dict[str, Pair] = {}
        self._online: dict[str, tuple[OnlineNetwork, RecentSamples]] = {}

    def build(self) -> None:
        """Build the learner, and check the settings that need its networks.

        Raises
        ------
        SettingError
            If no module has a target network, or a setting does not fit the networks.
        """
        super().build()
        pairs = [self._pair(module_id) for module_id in self._module_ids()]
        if not any(pairs):
            raise SettingError(
                f"{type(self).__name__}: accepted are algorithms with a target network (TargetNetworkAPI)."
            )

    def add_module(self, *, module_id: str, **kwargs: Any) -> Any:
        """Add a module, and look after its networks."""
        spec = super().add_module(module_id=module_id, **kwargs)
        self._pair(module_id)
        return spec

    def remove_module(self, module_id: str, **kwargs: Any) -> Any:
        """Forget the module's networks with it."""
        self._pairs.pop(module_id, None)
        self._online.pop(module_id, None)
        return super().remove_module(module_id, **kwargs)

    def apply_gradients(self, gradients_dict: Mapping[Any, Any]) -> None:
        """Make an optimiser step, and then what is due after it."""
        moved = [
            (module_id, pair)
            for module_id in self._module_ids()
            if (pair := self._pair(module_id)) is not None and pair.moves(gradients_dict)
        ]
        super().apply_gradients(gradients_dict)
        for module_id, pair in moved:
            pair.steps += 1
            self._follow(pair)
            self._measure(module_id, pair)
            self._reset(module_id, pair)
            self._shrink_perturb(module_id, pair)
            self._reset_heads(module_id, pair)

    # What the mixins fill in; no-ops here, so that any subset of them works.
    def _follow(self, pair: Pair) -> None: ...
    def _reset(self, module_id: str, pair: Pair) -> None: ...
    def _shrink_perturb(self, module_id: str, pair: Pair) -> None: ...
    def _reset_heads(self, module_id: str, pair: Pair) -> None: ...
    def _equip(self, module_id: str, pair: Pair, config: Any) -> None: ...

    def _tortoise(self, hare: nn.Module, target: nn.Module, config: Any) -> Tortoise:
        return Tortoise(hare, twin=target)

    def _module_ids(self) -> list[str]:
        return list(self.module.keys())

    def _pair(self, module_id: str) -> Pair | None:
        pair = self._pairs.get(module_id)
        # Until the first step the networks may be exchanged for loaded ones: initial weights are those it starts from.
        if pair is not None and pair.steps > 0:
            return pair
        module = self.module[module_id].unwrapped()
        if not isinstance(module, TargetNetworkAPI):
            return None
        config = self.config.get_config_for_module(module_id)
        if not hasattr(config, "_learner_mixin"):
            raise SettingError(
                f"{type(self).__name__}: {type(config).__name__} has not its settings: make the config with "
                f"with_hare_tortoise({type(config).__name__}), and let it or Ray Tune build its own algorithm, "
                "config.algo_class."
            )
        pair = Pair(self._tortoise(*network_pair(module), config))
        self._equip(module_id, pair, config)
        if config.indicators_interval is not None:
            if module_id not in self._online:
                network = OnlineNetwork(module)
                self._online[module_id] = network, RecentSamples(network.columns)
            network, _ = self._online[module_id]
            pair.initial = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        self._pairs[module_id] = pair
        return pair

    def _optimizers(self, module_id: str) -> list[Any]:
        return [optimizer for _, optimizer in self.get_optimizers_for_module(module_id)]

    def _beside(self, module_id: str) -> list[nn.Parameter]:
        # What is optimised and not in the module, nor therefore in RLlib's checkpoints: the temperature of SAC.
        inside = set(self.module[module_id].parameters())
        groups = (group for optimizer in self._optimizers(module_id) for group in optimizer.param_groups)
        return [parameter for group in groups for parameter in group["params"] if parameter not in inside]

    def _fresh_hare(self, module_id: str) -> nn.Module:
        # The RLModule made anew, so that initialisers which its settings name are used.
        module = RLModuleSpec.from_module(self.module[module_id].unwrapped()).build()
        module.make_target_networks()
        return network_pair(module)[0]

    def _reinitialising(self, module_id: str, config: Any) -> dict[str, Any]:
        return {
            "toward": config.toward,
            "seed": config.seed or 0,
            "factory": partial(self._fresh_hare, module_id),
        }

    def _update(self, batch: Mapping[str, Any], **kwargs: Any) -> Any:
        for module_id, (_, samples) in self._online.items():
            if module_id in batch:
                samples.add(batch[module_id])
        return super()._update(batch, **kwargs)

    def _measure(self, module_id: str, pair: Pair) -> None:
        if pair.steps % _DISTANCE_INTERVAL == 0:
            self.metrics.log_value((module_id, DISTANCE), pair.tortoise.distance(), reduce=LAST)
        interval = self.config.get_config_for_module(module_id).indicators_interval
        if interval is not None and pair.steps % interval == 0:
            network, samples = self._online[module_id]
            measured = measure_indicators(network, samples.inputs(), pair.initial)
            self.metrics.log_dict(measured, key=module_id, reduce=LAST)

    def after_gradient_based_update(self, *, timesteps: Mapping[str, Any]) -> None:
        """Log what was counted."""
        super().after_gradient_based_update(timesteps=timesteps)
        for module_id, pair in self._pairs.items():
            for name, count in self._counts(pair).items():
                self.metrics.log_value((module_id, name), count, reduce="max")

    def _counts(self, pair: Pair) -> dict[str, int]:
        return {}

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the learner's state, with counters, initial weights and SAC's temperature under `COMPONENT_PAIRS`."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(COMPONENT_PAIRS, components, not_components):
            state[COMPONENT_PAIRS] = {
                module_id: convert_to_numpy({**pair.state_dict(), "beside": self._beside(module_id)})
                for module_id, pair in self._pairs.items()
            }
        return state

    def set_state(self, state: Any) -> None:
        """Continue from `state`; one without `COMPONENT_PAIRS`, of another learner, leaves the counters as they are."""
        super().set_state(state)
        if COMPONENT_PAIRS in state and COMPONENT_RL_MODULE in state:
            # RLlib passes over weights that it takes for older than its own; counters must not go back without them.
            self.module.set_state(state[COMPONENT_RL_MODULE])
        for module_id, own in state.get(COMPONENT_PAIRS, {}).items():
            if module_id in self._module_ids() and (pair := self._pair(module_id)) is not None:
                own = convert_to_torch_tensor(own)
                pair.load_state_dict(own)
                with torch.no_grad():
                    for parameter, value in zip(self._beside(module_id), own["beside"], strict=True):
                        parameter.copy_(value)


class HareTortoiseLearner(PairLearner):
    """Learner mixin: the target networks are the tortoise, and the online networks are set back to them.

    After every optimiser step ``target <- momentum * target + (1 - momentum) * online``; after every
    ``config.reset_interval`` of them ``online <- target``, in place. RLlib's own update of the target networks, which
    is counted in environment steps and goes through state dicts, does not run.

    Use it with `ht_ray.rllib.HareTortoiseConfig`, which also puts it before any learner of DQN's family.

    Examples
    --------
    >>> from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
    >>> class MyLearner(HareTortoiseLearner, DQNTorchLearner):
    ...     pass
    """

    def _tortoise(self, hare: nn.Module, target: nn.Module, config: Any) -> Tortoise:
        # The learner's own copy, of this module: here RLlib's update never comes due.
        config.target_network_update_freq = math.inf
        tortoise = Tortoise(
            hare,
            momentum=config.tortoise_momentum,
            reset_interval=config.reset_interval,
            reset_unit="steps",
            optimizer_state=config.optimizer_state,
            average_buffers=config.average_buffers,
            twin=target,
        )
        tortoise.begin_phase(steps_per_epoch=1)  # which warns of an interval too short for the momentum
        return tortoise

    def _follow(self, pair: Pair) -> None:
        pair.tortoise.follow()

    def _reset(self, module_id: str, pair: Pair) -> None:
        interval = pair.tortoise.reset_interval
        if interval is not None and pair.steps % interval == 0:
            pair.tortoise.reset(self._optimizers(module_id))

    def _counts(self, pair: Pair) -> dict[str, int]:
        return super()._counts(pair) | {UPDATES: pair.tortoise.updates, RESETS: pair.tortoise.resets}


class ShrinkPerturbLearner(PairLearner):
    """Learner mixin: Shrink & Perturb every ``config.shrink_perturb_interval`` optimiser steps.

    It acts on the online networks that have a target, and on the targets with the same draws; the optimiser forgets
    what it remembers of the online ones. Use it with `ht_ray.rllib.ShrinkPerturbConfig`.
    """

    def _equip(self, module_id: str, pair: Pair, config: Any) -> None:
        super()._equip(module_id, pair, config)
        if config.shrink_perturb_interval is not None:
            pair.shrink_perturb = ShrinkPerturb(
                pair.hare,
                ratio=config.shrink_perturb_ratio,
                noise=config.shrink_perturb_noise,
                **self._reinitialising(module_id, config),
            )

    def _shrink_perturb(self, module_id: str, pair: Pair) -> None:
        config = self.config.get_config_for_module(module_id)
        if pair.shrink_perturb is not None and pair.steps % config.shrink_perturb_interval == 0:
            both = pair.tortoise if config.reinitialise_target else None
            pair.shrink_perturb.apply(both, self._optimizers(module_id))

    def _counts(self, pair: Pair) -> dict[str, int]:
        own = {SHRINK_PERTURBS: pair.shrink_perturb.applications} if pair.shrink_perturb is not None else {}
        return super()._counts(pair) | own


class HeadResetLearner(PairLearner):
    """Learner mixin: Head Reset every ``config.head_reset_interval`` optimiser steps.

    The parts named by ``config.reset_parts``, by default all networks that are no encoder, are set to fresh or to their
    initial weights, and those of the targets to the same; the optimiser forgets them. Use it with
    `ht_ray.rllib.HeadResetConfig`.
    """

    def _equip(self, module_id: str, pair: Pair, config: Any) -> None:
        super()._equip(module_id, pair, config)
        if config.head_reset_interval is not None:
            parts = config.reset_parts if config.reset_parts is not None else head_parts(pair.hare)
            settings = self._reinitialising(module_id, config)
            pair.head_resets = tuple(HeadReset(pair.hare, head=part, **settings) for part in parts)

    def _reset_heads(self, module_id: str, pair: Pair) -> None:
        config = self.config.get_config_for_module(module_id)
        if pair.head_resets and pair.steps % config.head_reset_interval == 0:
            both = pair.tortoise if config.reinitialise_target else None
            for method in pair.head_resets:
                method.apply(both, self._optimizers(module_id))

    def _counts(self, pair: Pair) -> dict[str, int]:
        own = {HEAD_RESETS: pair.head_reset_count} if pair.head_resets else {}
        return super()._counts(pair) | own
