"""Learner mixin: calls methods around RLlib's optimizer steps, for any learner with torch.

Everything is counted in optimizer steps of a module. At one step the order is: the target follows; the indicators are
measured; the reset that is due; Shrink & Perturb; Head Reset; then the other methods by their rank.
"""

from __future__ import annotations

import inspect
import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import tree  # type: ignore[import-untyped]
from ray.rllib.algorithms.dqn.dqn_learner import DQNLearner
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis import TargetNetworkAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor, nn

from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.optimizer_state import Optimizers
from ht_ray.methods import METHODS, Composition, Method, Phase, Tortoise
from ht_ray.rllib.indicators import OnlineNetwork, RecentSamples, measure_indicators
from ht_ray.rllib.last_value import LAST
from ht_ray.rllib.networks import Networks, all_networks, head_parts, network_pair

__all__ = [
    "COMPONENT_METHODS",
    "DISTANCE",
    "HEAD_RESETS",
    "RESETS",
    "SHRINK_PERTURBS",
    "UPDATES",
    "HareTortoiseLearner",
    "HeadResetLearner",
    "MethodLearner",
    "ShrinkPerturbLearner",
]

#: The methods' part of a learner's state.
COMPONENT_METHODS = "methods"

#: Metrics of a module: optimizer steps that the tortoise followed, resets, and what else was applied, over its life.
UPDATES = "tortoise_updates"
RESETS = "tortoise_resets"
SHRINK_PERTURBS = "shrink_perturbs"
HEAD_RESETS = "head_resets"
#: Euclidean distance between online and target networks, as of the first step, and of the last that was a multiple of
#: 100.
DISTANCE = "hare_tortoise_distance"
_DISTANCE_INTERVAL = 100

# Metrics by method, and the attribute of the method that counts it.
_COUNTS: Mapping[str, Mapping[str, str]] = {
    "hare_tortoise": {UPDATES: "updates", RESETS: "resets"},
    "target": {},
    "regenerative": {},
    "shrink_perturb": {SHRINK_PERTURBS: "applications"},
    "head_reset": {HEAD_RESETS: "applications"},
    "redo": {"recycled_units": "recycled"},
    "continual_backprop": {"replaced_units": "replacements"},
    "optimizer_reset": {"optimizer_resets": "resets"},
}
# Counters of all methods, which say nothing of what a method does.
_CLOCKS = ("seed", "steps", "epochs")


class TargetNetwork(Tortoise):
    """A target network that the algorithm updates itself: methods treat it as they do the online networks."""

    name = "target"
    title = "Target Network"

    def average(self) -> None:
        """Do nothing: the algorithm does."""

    def count_step(self, optimizer: Optimizers | None = None) -> bool:
        """Do nothing: the online networks are never set back."""
        return False


@dataclass
class ModuleMethods:
    """The methods of one RLModule, and what is counted and kept for them."""

    networks: Networks
    """What they act on."""
    composition: Composition
    inputs: deque[Any]
    """Of the last batches, as many as a method keeps."""
    online: OnlineNetwork | None = None
    """What indicators are measured of, if they are."""
    samples: RecentSamples | None = None
    initial: dict[str, Tensor] = field(default_factory=dict)
    """Initial weights of `online`, by name: indicators tell the distance from them."""
    steps: int = 0
    """Optimizer steps so far."""

    def see(self, batch: Mapping[str, Any]) -> None:
        """Show the methods a batch before the networks compute it.

        Raises
        ------
        SettingError
            If an observation is no tensor, and a method or an indicator looks at it.
        """
        if self.samples is not None:
            self.samples.add(batch)
        if not any(overrides(type(method), "before_forward") for method in self.composition.methods):
            return
        inputs = tuple(batch[column] for column in self.networks.columns)
        if not all(isinstance(one, Tensor) for one in inputs):
            raise SettingError(
                f"methods = {self.composition.name!r}: observations that are no single tensor cannot be looked at: "
                "leave out the methods that look at them."
            )
        shown = inputs if len(inputs) > 1 else inputs[0]
        self.inputs.append(shown)
        self.composition.before_forward(shown)

    def counts(self) -> dict[str, int]:
        """Return what the methods count, by the metrics' names; of unknown methods, each whole number they have."""
        found: dict[str, int] = {}
        for method in self.composition.methods:
            named = _COUNTS.get(method.name)
            if named is None:
                own = {name: value for name, value in vars(method).items() if type(value) is int and name[0] != "_"}
                found |= {f"{method.name}_{name}": value for name, value in own.items() if name not in _CLOCKS}
            else:
                found |= {metric: getattr(method, attribute) for metric, attribute in named.items()}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from, without the networks themselves: the RLModule has them."""
        methods = self.composition.state_dict()
        if self.composition.tortoise is not None:
            del methods[self.composition.tortoise.name]["weights"]
        return {"steps": self.steps, "initial": self.initial, "inputs": list(self.inputs), "methods": methods}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; methods that were off when it was taken begin now."""
        self.steps = int(state["steps"])
        self.initial.update({name: tensor for name, tensor in state["initial"].items() if name in self.initial})
        methods = self.composition.state_dict()
        methods |= {name: {**methods[name], **own} for name, own in state["methods"].items() if name in methods}
        self.composition.load_state_dict(methods)
        self.inputs.extend(state["inputs"])
        self.composition.resume(lambda count: list(self.inputs)[-count:])


# Not RLlib's functions, which make 32 bits of 64, and tensors of plain numbers.
def _to_numpy(leaf: Any) -> Any:
    return leaf.detach().cpu().numpy().copy() if isinstance(leaf, Tensor) else leaf


def _to_tensor(leaf: Any) -> Any:
    return torch.tensor(leaf) if isinstance(leaf, np.ndarray) else leaf


def overrides(cls: type[Method], moment: str) -> bool:
    """Return whether the method does something at this moment."""
    return getattr(cls, moment) is not getattr(Method, moment)


class MethodLearner(TorchLearner):
    """Learner mixin: the methods of ``config.method_config`` act on the networks of each module.

    Of DQN's family these are the online networks that have a target; of other algorithms all networks. Configs with
    `ht_ray.rllib.MethodsConfig` put it before the algorithm's learner; by hand, so does the order of inheritance.

    Examples
    --------
    >>> from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
    >>> class MyLearner(MethodLearner, PPOTorchLearner):
    ...     pass
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        before = cls.__mro__[: cls.__mro__.index(MethodLearner)]
        learners = [one for one in before if issubclass(one, Learner) and not issubclass(one, MethodLearner)]
        if not all(map(inspect.isabstract, learners)):
            raise TypeError(
                f"{cls.__name__}: put the mixins before the learner: class L(HareTortoiseLearner, DQNTorchLearner)"
            )

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._methods: dict[str, ModuleMethods] = {}
        self._watching = ExitStack()

    def build(self) -> None:
        """Build the learner, and check the settings that need its networks.

        Raises
        ------
        SettingError
            If no module has networks for the methods, or a setting does not fit the networks.
        """
        super().build()
        for module_id in list(self.module.keys()):
            self._equip(module_id)
        if not self._methods:
            raise SettingError(
                f"{type(self).__name__}: no module has networks for the methods: Hare & Tortoise needs a target "
                "network (TargetNetworkAPI), the others any network of torch."
            )

    def add_module(self, *, module_id: str, **kwargs: Any) -> Any:
        """Add a module, and look after its networks."""
        if overrides := kwargs.get("config_overrides"):
            config = self.config.copy(copy_frozen=False)
            if getattr(config, "target_network_update_freq", 0) == math.inf:  # as `_equip` leaves it
                config.target_network_update_freq = 0
            config.check_overrides(overrides)
        spec = super().add_module(module_id=module_id, **kwargs)
        self._equip(module_id)
        return spec

    def remove_module(self, module_id: str, **kwargs: Any) -> Any:
        """Forget the module's methods with it."""
        self._methods.pop(module_id, None)
        return super().remove_module(module_id, **kwargs)

    # The moments.

    def _update(self, batch: Mapping[str, Any], **kwargs: Any) -> Any:
        with ExitStack() as self._watching:
            for module_id in [module_id for module_id in self._methods if module_id in batch]:
                # Until the first step the networks may be exchanged for loaded ones, or get other parts.
                if self._methods[module_id].steps == 0:
                    self._equip(module_id)
                held = self._methods[module_id]
                held.see(batch[module_id])
                self._watching.enter_context(held.composition.watch())
            return super()._update(batch, **kwargs)

    def compute_gradients(self, loss_per_module: dict[str, Any], **kwargs: Any) -> dict[Any, Any]:
        """Return the gradients of the modules' losses, with those of what the methods add to them.

        The latter are computed apart: SAC differentiates losses of its own, not those that it is given here.
        """
        self._watching.close()  # forward passes and losses are computed
        gradients: dict[Any, Any] = super().compute_gradients(loss_per_module, **kwargs)
        for module_id, held in self._methods.items():
            if module_id not in loss_per_module:
                continue
            loss = loss_per_module[module_id]
            term = held.composition.loss(loss.new_zeros(()), loss.new_zeros(0))
            if not term.requires_grad:
                continue
            loss_per_module[module_id] = loss + term.detach()
            trained = [parameter for parameter in held.networks.parameters() if parameter.requires_grad]
            for parameter, own in zip(trained, torch.autograd.grad(term, trained, allow_unused=True), strict=True):
                if own is not None:
                    before = gradients.get(parameter)
                    gradients[parameter] = own if before is None else before + own
        return gradients

    def apply_gradients(self, gradients_dict: Mapping[Any, Any]) -> None:
        """Make an optimizer step, with what the methods do before and after it."""
        moved = {
            module_id: held
            for module_id, held in self._methods.items()
            if any(parameter in gradients_dict for parameter in held.networks.parameters())
        }
        stepped: set[str] = set()
        with ExitStack() as stack:
            for module_id in moved:
                stack.enter_context(self._before_step(module_id, stepped))
            super().apply_gradients(gradients_dict)
        # RLlib may pass over a step whose gradients are not finite.
        for module_id, held in moved.items():
            if module_id not in stepped:
                continue
            optimizers = self._optimizers(module_id)
            held.steps += 1
            held.composition.update(optimizers)
            self._measure(module_id, held)
            held.composition.after_update(optimizers)

    @contextmanager
    def _before_step(self, module_id: str, stepped: set[str]) -> Iterator[None]:
        # RLlib hands all gradients to their parameters, and then calls one optimizer after the other.
        optimizers = self._optimizers(module_id)

        def begin(*_: Any) -> None:
            if module_id not in stepped:
                stepped.add(module_id)
                self._methods[module_id].composition.before_step(optimizers)

        with ExitStack() as hooks:
            for optimizer in optimizers:
                hooks.callback(optimizer.register_step_pre_hook(begin).remove)
            yield

    # What the methods are made of.

    def _equip(self, module_id: str) -> None:
        """Make the methods of a module over its networks as they are, where it has some for them."""
        module = self.module[module_id].unwrapped()
        config = self.config.get_config_for_module(module_id)
        if not hasattr(config, "method_config"):
            raise SettingError(
                f"{type(self).__name__}: {type(config).__name__} has not its settings: make the config with "
                f"with_hare_tortoise({type(config).__name__}) or with_methods({type(config).__name__}), and let it or "
                "Ray Tune build its own algorithm, config.algo_class."
            )
        methods = config.method_config
        paired = self._has_target(module)
        if not isinstance(module, nn.Module) or (methods.has_ema and not paired):
            return
        networks = network_pair(module).online if paired else all_networks(module)
        if not networks:
            return
        given: dict[str, Any] = {"factory": lambda: self._fresh(module)}
        if paired:
            given["target"] = network_pair(module).target
        built: list[Method] = []
        for name, settings in methods.settings.items():
            accepted = inspect.signature(METHODS[name]).parameters
            own = {key: value for key, value in given.items() if key in accepted}
            if name == "head_reset":
                own["head"] = config.reset_parts if config.reset_parts is not None else head_parts(networks)
            built.append(METHODS[name](networks, settings, seed=config.seed or 0, **own))
        if paired and not methods.has_ema:
            built.append(TargetNetwork(networks, target=given["target"]))
        elif paired:
            # The learner's own copy, of this module: here RLlib's update never comes due.
            config.target_network_update_freq = math.inf
        composition = Composition(networks, built)
        composition.before_phase(Phase(steps_per_epoch=1), self._optimizers(module_id))
        kept = max((getattr(method.settings, "batches", 0) for method in built), default=0)
        held = ModuleMethods(networks, composition, deque(maxlen=kept))
        if config.indicators_interval is not None:
            held.online = OnlineNetwork(module)
            held.samples = RecentSamples(held.online.columns)
            held.initial = {name: tensor.detach().clone() for name, tensor in held.online.named_parameters()}
        self._methods[module_id] = held

    def _has_target(self, module: Any) -> bool:
        # APPO's target is the old policy, which its loss compares with: it is no second copy of what is learned.
        return isinstance(self, DQNLearner) and isinstance(module, TargetNetworkAPI)

    def _fresh(self, module: Any) -> nn.Module:
        # The RLModule is built again, so that initialisers which its settings name are used.
        made = RLModuleSpec.from_module(module).build()
        if isinstance(made, TargetNetworkAPI):
            made.make_target_networks()
        return network_pair(made).online if self._has_target(module) else all_networks(made)

    def _optimizers(self, module_id: str) -> list[Any]:
        return [optimizer for _, optimizer in self.get_optimizers_for_module(module_id)]

    def _outside(self, module_id: str) -> list[nn.Parameter]:
        # What is optimized and not in the module, nor therefore in RLlib's checkpoints: the temperature of SAC.
        inside = set(self.module[module_id].parameters())
        groups = (group for optimizer in self._optimizers(module_id) for group in optimizer.param_groups)
        return [parameter for group in groups for parameter in group["params"] if parameter not in inside]

    # Metrics and state.

    def _measure(self, module_id: str, held: ModuleMethods) -> None:
        # At the first step, too: no iteration is without a value.
        due = held.steps == 1 or held.steps % _DISTANCE_INTERVAL == 0
        if held.composition.tortoise is not None and due:
            self.metrics.log_value((module_id, DISTANCE), held.composition.tortoise.distance(), reduce=LAST)
        interval = self.config.get_config_for_module(module_id).indicators_interval
        if held.online is not None and held.samples is not None and held.steps % interval == 0:
            measured = measure_indicators(held.online, held.samples.inputs(), held.initial)
            self.metrics.log_dict(measured, key=module_id, reduce=LAST)

    def after_gradient_based_update(self, *, timesteps: Mapping[str, Any]) -> None:
        """Log what was counted."""
        super().after_gradient_based_update(timesteps=timesteps)
        for module_id, held in self._methods.items():
            for name, count in held.counts().items():
                self.metrics.log_value((module_id, name), count, reduce="max")

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the learner's state, with that of the methods and SAC's temperature under `COMPONENT_METHODS`."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(COMPONENT_METHODS, components, not_components):
            state[COMPONENT_METHODS] = {
                module_id: tree.map_structure(_to_numpy, {**held.state_dict(), "outside": self._outside(module_id)})
                for module_id, held in self._methods.items()
            }
        return state

    def set_state(self, state: Any) -> None:
        """Continue from `state`; one without `COMPONENT_METHODS`, of another learner, leaves the methods alone."""
        super().set_state(state)
        if COMPONENT_METHODS in state and COMPONENT_RL_MODULE in state:
            # RLlib passes over weights that it takes for older than its own; counters must not go back without them.
            self.module.set_state(state[COMPONENT_RL_MODULE])
        for module_id, own in state.get(COMPONENT_METHODS, {}).items():
            if module_id not in self._methods:
                continue
            self._equip(module_id)
            own = tree.map_structure(_to_tensor, own)
            own["inputs"] = tree.map_structure(lambda tensor: tensor.to(self.device), own["inputs"])
            self._methods[module_id].load_state_dict(own)
            with torch.no_grad():
                for parameter, value in zip(self._outside(module_id), own["outside"], strict=True):
                    parameter.copy_(value)


class HareTortoiseLearner(MethodLearner):
    """Learner mixin of `ht_ray.rllib.HareTortoiseConfig`: the target networks are the tortoise.

    After every optimizer step ``target <- momentum * target + (1 - momentum) * online``; after every
    ``config.reset_interval`` of them ``online <- target``, in place. RLlib's own update of the target networks, which
    is counted in environment steps and goes through state dicts, does not run.

    Examples
    --------
    >>> from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
    >>> class MyLearner(HareTortoiseLearner, DQNTorchLearner):
    ...     pass
    """


class ShrinkPerturbLearner(MethodLearner):
    """Learner mixin of `ht_ray.rllib.ShrinkPerturbConfig`."""


class HeadResetLearner(MethodLearner):
    """Learner mixin of `ht_ray.rllib.HeadResetConfig`."""
