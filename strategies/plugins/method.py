"""The plugin by which methods act in any Avalanche strategy."""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from typing import Any, ClassVar

import torch
from avalanche.benchmarks import OnlineCLExperience
from avalanche.models import IncrementalClassifier, MultiHeadClassifier
from avalanche.models.utils import avalanche_forward, is_multi_task_module
from avalanche.training.plugins import CWRStarPlugin, LRSchedulerPlugin, SupervisedPlugin
from avalanche.training.templates.update_type import MetaUpdate
from torch import Tensor, nn
from torch.optim import Optimizer

from ht_ray._checks import check_number
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms import isolated_rng
from ht_ray.methods import (
    METHODS,
    Composition,
    InjectedHead,
    Inputs,
    Method,
    MethodConfig,
    Phase,
    Tortoise,
)
from ht_ray.methods.config import current_names
from ht_ray.methods.settings import declared

from ..loading import InMemoryLoading, TaskLoader
from .early_stopping import BestTortoise

__all__ = ["RENAMED", "MethodPlugin", "method_settings", "named_plugin", "signature_of"]

#: Settings of plugins by their names in earlier versions.
RENAMED = {"reinitialise_tortoise": "reinitialize_tortoise"}


class MethodPlugin(SupervisedPlugin, supports_distributed=True):  # type: ignore[call-arg]
    """Methods against loss of plasticity, in any Avalanche strategy.

    Several such plugins act as one: the first of them in the strategy's list calls the methods of all, in the one order
    that `ht_ray.methods.Composition` has, wherever they stand. An experience is a phase. The methods are made before
    the first experience, when the model and its initial weights are there.

    A step is one of the optimiser: where a strategy accumulates gradients, or a scaler skips a step, methods wait for
    the next call of its ``step``. What they do before a step comes after all other plugins' ``before_update``, clipping
    among them. Where a strategy makes meta-updates (MER, La-MAML), a step is an outer update.

    In online streams a sub-experience counts its epochs from 1, so count intervals in steps there; a phase begins with
    the first sub-experience of an experience. A stream that hides where that is (``access_task_boundaries=False``) is
    one phase, and a warning says so where a method acts before phases.

    Evaluation exchanges the values of hare and tortoise in place and puts them back after. If evaluation or the network
    raises, they are put back, and hooks taken off, when training or evaluation starts again (or by `restore`).
    Avalanche's ``EarlyStoppingPlugin`` sees the tortoise's metrics and restores the hare of the best moment; the
    tortoise is then set to its own values of that moment.

    Parameters
    ----------
    method : MethodConfig, type of Method or str
        What acts: a configuration, a name as `ht_ray.methods.MethodConfig` takes it, or a method's class.
    seed : int, default 0
        Of what the methods draw.
    configured : bool, default False
        Whether training was configured by `ht_ray.methods.MethodConfig.training` already, as `make_strategy` does it.
        Otherwise methods that do nothing else are refused.
    **settings
        Of the method, where it is a class: its settings, and what else its class takes (``head``, ``layers``,
        ``factory``). ``layers`` may be a function of the model, called before each experience. Where it is a name,
        settings by their names in `MethodConfig`.

    Raises
    ------
    SettingError
        If a setting is not accepted; before the first experience, if a method cannot act on the model.

    Examples
    --------
    >>> from strategies import MethodPlugin
    >>> plugin = MethodPlugin("hare_tortoise+redo", momentum=0.99, redo_interval=1)
    """

    #: The class of the method, of a plugin that is made for one.
    kind: ClassVar[type[Method] | None] = None

    def __init__(
        self, method: MethodConfig | type[Method] | str, *, seed: int = 0, configured: bool = False, **settings: Any
    ) -> None:
        super().__init__()
        self.seed = seed
        self.config: MethodConfig | None = None
        self.classes: tuple[type[Method], ...]
        if isinstance(method, type):
            known = {"seed", *method_settings(method)}
            settings = current_names(type(self)._name(method), settings, RENAMED, dict.fromkeys(known))
            _check(method, {**settings, "seed": seed})
            self.classes = (method,)
        else:
            self.config = method if isinstance(method, MethodConfig) else MethodConfig(method, **settings)
            self.classes = tuple(METHODS[part] for part in self.config.settings)
        idle = [cls.name for cls in self.classes if cls.only_configures]
        if idle and not configured:
            raise SettingError(
                f"{type(self).__name__}: {' and '.join(idle)} changes how the network is trained; no plugin does: "
                "use make_strategy, or AugmentPlugin, or the optimiser's eps and betas."
            )
        self.settings = settings
        #: The methods over the model, by name; empty before the first experience.
        self.methods: dict[str, Method] = {}
        #: How many experiences have begun.
        self.experiences = 0
        #: The loss of the batch without what methods add to it.
        self.plain_loss: Tensor | None = None
        #: Returns how good the model is on validation data, for several tortoises (see `ht_ray.methods.Composition`).
        self.validate: Callable[[], Any] | None = None
        self._acting: Composition | None = None
        self._ended = True
        self._warned = False
        self._stepped = False
        self._steps = self._batches = 0
        # What is on model and optimiser during a batch.
        self._hooks = ExitStack()
        self._best = BestTortoise()
        self._owner: weakref.ref[Any] | None = None

    @classmethod
    def _name(cls, method: type[Method]) -> str:
        return cls.__name__ if cls.kind is not None else f"{cls.__name__}({method.__name__})"

    def __getstate__(self) -> dict[str, Any]:
        # Between batches, where alone a strategy can be saved, nothing is on the stack.
        fresh = {"_hooks": ExitStack(), "_acting": None, "_owner": None, "plain_loss": None, "validate": None}
        return {**self.__dict__, **fresh}

    @property
    def method(self) -> Method | None:
        """The method, of a plugin with one; None before the first experience."""
        return next(iter(self.methods.values()), None)

    @property
    def tortoise(self) -> Tortoise | None:
        """The tortoise, if this plugin's methods have one; None before the first experience."""
        return next((method for method in self.methods.values() if isinstance(method, Tortoise)), None)

    def trained_tortoise(self) -> nn.Module:
        """Return the slow network as a plain module of its own, in evaluation mode.

        Raises
        ------
        RuntimeError
            Before the first experience, and without a tortoise.
        """
        if self.tortoise is None:
            raise RuntimeError("there is no tortoise before the first experience")
        return self.tortoise.trained_tortoise()

    def attach(self, model: nn.Module) -> None:
        """Make the methods over `model`, unless they are, from its present weights as the initial ones."""
        settings = dict(self.settings)
        if callable(settings.get("layers")):
            settings["layers"] = settings["layers"](model)
        if not self.methods:
            if self.config is not None:
                made = self.config.build(model, seed=self.seed).methods
            else:
                made = tuple(cls(model, seed=self.seed, **settings) for cls in self.classes)
            self.methods = {method.name: method for method in made}
        self.restore()
        heads = (IncrementalClassifier, MultiHeadClassifier)
        masked = {float(part.mask_value) for part in model.modules() if isinstance(part, heads) and part.masking}
        for method in self.methods.values():
            method.module = model
            if "layers" in settings:
                method.layers = settings["layers"]  # type: ignore[attr-defined]
            if hasattr(method, "masked"):
                method.masked = tuple(masked)

    def restore(self) -> None:
        """Put the hare's values back into the model, and take off hooks, if an exception has left them there."""
        self._hooks.close()
        if self.tortoise is not None:
            self.tortoise.stop_predicting()

    def _claim(self, strategy: Any) -> None:
        owner = None if self._owner is None else self._owner()
        if owner is None:
            self._owner = weakref.ref(strategy)
        elif owner is not strategy and owner.model is not strategy.model:
            raise SettingError(f"{type(self).__name__}: it acts in another strategy already: make one for each.")

    @staticmethod
    def host(strategy: Any) -> MethodPlugin | None:
        """Return the plugin that acts for all of its kind in a strategy: the first."""
        return next((plugin for plugin in strategy.plugins if isinstance(plugin, MethodPlugin)), None)

    @staticmethod
    def all_in(strategy: Any) -> list[MethodPlugin]:
        """Return the plugins of this kind of a strategy."""
        return [plugin for plugin in strategy.plugins if isinstance(plugin, MethodPlugin)]

    def compose(self, strategy: Any) -> Composition | None:
        """Return the methods of all plugins over the strategy's model, if this one acts for all."""
        self._acting = None
        if self.host(strategy) is self:
            plugins = self.all_in(strategy)
            for plugin in plugins:
                plugin.attach(strategy.model)
            methods = [method for plugin in plugins for method in plugin.methods.values()]
            self._acting = Composition(strategy.model, methods)
            self._acting.validate = self.validate
        return self._acting

    def resume(self, strategy: Any) -> None:
        """Act in place of `before_training_exp` where an experience goes on that was interrupted."""
        if (methods := self.compose(strategy)) is None:
            return
        self._best.begin(strategy)

        def batches(count: int) -> list[Inputs]:
            several = is_multi_task_module(strategy.model)
            seen = strategy.dataloader.before(strategy.clock.train_exp_epochs + 1, count)
            return [(batch[0], batch[-1]) if several else batch[0] for batch in seen]

        methods.resume(batches)

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        self._claim(strategy)
        self.restore()
        if isinstance(strategy, MetaUpdate):
            _check_meta_update(type(self).__name__, self.classes)
        plugins = self.all_in(strategy)
        with_tortoise = [p for p in plugins if any(issubclass(cls, Tortoise) for cls in p.classes)]
        if len(with_tortoise) > 1:
            named = " and ".join(type(plugin).__name__ for plugin in with_tortoise)
            raise SettingError(f"plugins: a strategy takes one tortoise; it has {named}.")
        if with_tortoise and any(isinstance(plugin, CWRStarPlugin) for plugin in strategy.plugins):
            raise SettingError(
                f"{type(with_tortoise[0]).__name__}: CWRStarPlugin writes the head that is to be evaluated into the "
                "hare after each experience, and the tortoise, which is evaluated, has none of it: use one of the two."
            )
        bringing = [cls for cls in self.classes if cls.brings is not None]
        if bringing and not with_tortoise:
            raise SettingError(
                f"{type(self).__name__}: the strategy has no teacher: put an EMAPlugin or a HareTortoisePlugin next to "
                "it."
            )

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if (methods := self.compose(strategy)) is None:
            return
        self._best.begin(strategy)
        self._steps = self._batches = 0
        _configure_optimizer(strategy, methods)
        experience = strategy.experience
        online = isinstance(experience, OnlineCLExperience)
        begins = True
        if online:
            hidden = not experience.access_task_boundaries
            begins = self.experiences == 0 if hidden else experience.is_first_subexp
            if hidden and not begins:
                self._warn_of_hidden_phases(methods)
        steps = None
        # A sub-experience of an online stream is no phase whose size says anything.
        if not online:
            with suppress(TypeError):  # a user's loader without a length: only warnings need it
                steps = len(strategy.dataloader)
        phase = Phase(self.experiences, strategy.train_epochs, steps, begins, partial(_losses, strategy))
        methods.before_phase(phase, strategy.optimizer)
        if begins:
            for plugin in self.all_in(strategy):
                plugin.experiences += 1
        _follow_injected_heads(strategy)

    def _warn_of_hidden_phases(self, methods: Composition) -> None:
        acting = [type(method).__name__ for method in methods.methods if method.acts_before_phases]
        if acting and not self._warned:
            self._warned = True
            warnings.warn(
                f"{', '.join(acting)}: the online stream hides where experiences begin, so nothing is re-initialised: "
                "make it with access_task_boundaries=True.",
                SettingWarning,
                stacklevel=2,
            )

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._ended = False

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        if (methods := self._acting) is None:
            return
        if methods.tortoise is not None:
            self._best.watch(strategy, methods.tortoise)
        with strategy.autocast() if isinstance(strategy, InMemoryLoading) else nullcontext():
            methods.before_forward(_inputs(strategy))
        self._hooks.enter_context(methods.watch())

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        self._hooks.close()

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if self._acting is not None:
            self.plain_loss = strategy.loss.detach()
            strategy.loss = self._acting.loss(strategy.loss, strategy.mb_output)

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        if self._acting is None:
            return
        self._stepped = False
        if isinstance(strategy.optimizer, Optimizer):
            # For this batch alone: optimisers are replaced, copied and saved. A hook that returns None changes nothing.
            handle = strategy.optimizer.register_step_pre_hook(lambda optimizer, *_: self._before_step(optimizer))
            self._hooks.callback(handle.remove)
        else:
            self._before_step(strategy.optimizer)

    def _before_step(self, optimizer: Any) -> None:
        if self._acting is not None:
            self._acting.before_step(optimizer)
        self._stepped = True

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        self._hooks.close()
        if self._acting is None:
            return
        self._batches += 1
        if self._stepped:
            self._steps += 1
            self._acting.after_step(strategy.optimizer, _inputs(strategy))

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        # Such a strategy calls no `after_update`, and others warn of a plugin that has `after_outer_update`.
        if isinstance(strategy, MetaUpdate):
            self._stepped = True
            self.after_update(strategy)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        # Whoever measures after an epoch calls it first.
        if self._acting is None or self._ended:
            return
        self._ended = True
        # Avalanche's clock counts the epoch after all plugins have seen its end.
        last = strategy.clock.train_exp_epochs + 1 >= strategy.train_epochs
        self._acting.end_epoch(strategy.optimizer, last=last)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self._acting is None:
            return
        if self._batches and not self._steps:
            warnings.warn(
                f"{', '.join(type(method).__name__ for method in self._acting.methods)}: {self._batches} batches were "
                "trained on, and the optimiser's step was never called: nothing was done after steps.",
                SettingWarning,
                stacklevel=2,
            )
        if self._acting.tortoise is not None:
            self._best.restore(self._acting.tortoise)
        self._acting.end_phase()

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        self._claim(strategy)
        self.restore()
        if self.tortoise is not None:
            self.tortoise.module = strategy.model
            self.tortoise.start_predicting()

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        self.restore()

    def rebuild(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Give `model`, as it was made, the structure that it had in `state`; call before its own state is loaded."""
        if state["methods"]:
            self.attach(model)
            for name, method in self.methods.items():
                method.rebuild(state["methods"][name])

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from."""
        states = {name: method.state_dict() for name, method in self.methods.items()}
        return {"experiences": self.experiences, "methods": states}

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Continue from `state` on `model`, in the middle of an experience, too."""
        self.experiences = int(state["experiences"])
        if state["methods"]:
            self.attach(model)
            for name, method in self.methods.items():
                method.grown()
                method.load_state_dict(state["methods"][name])


def _inputs(strategy: Any) -> Inputs:
    return (strategy.mb_x, strategy.mb_task_id) if is_multi_task_module(strategy.model) else strategy.mb_x


def _losses(strategy: Any, network: nn.Module) -> Iterator[Tensor]:
    """Yield the losses of the experience's batches for `network`, as the strategy computes them."""
    loader = strategy.dataloader
    for batch in loader.coming() if isinstance(loader, TaskLoader) else loader:
        inputs, labels, task = (tensor.to(strategy.device) for tensor in (batch[0], batch[1], batch[-1]))
        with strategy.autocast() if isinstance(strategy, InMemoryLoading) else nullcontext():
            outputs = avalanche_forward(network, inputs, task)
        if isinstance(outputs, Tensor):  # autocast may have made bfloat16 of it
            outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        yield strategy._criterion(outputs, labels)


def _check_meta_update(plugin: str, classes: Iterable[type[Method]]) -> None:
    moments = ("before_forward", "watch", "loss", "before_step", "configure_optimizer")
    for cls in classes:
        if any(getattr(cls, moment) is not getattr(Method, moment) for moment in moments):
            raise SettingError(
                f"{plugin}: {cls.__name__} acts on a batch, in its loss or before a step, and a strategy of "
                "meta-updates has no such moments: accepted are methods that act after steps and epochs or before "
                "experiences."
            )


def _configure_optimizer(strategy: Any, methods: Composition) -> None:
    before = strategy.optimizer
    strategy.optimizer = methods.configure_optimizer(before)
    schedulers = [plugin.scheduler for plugin in strategy.plugins if isinstance(plugin, LRSchedulerPlugin)]
    if strategy.optimizer is not before and any(getattr(one, "optimizer", None) is before for one in schedulers):
        raise SettingError(
            "LRSchedulerPlugin: its scheduler changes the optimiser that a method has replaced by its own. Make that "
            "first, as in optimizer = Muon(model).configure_optimizer(optimizer), for strategy and scheduler."
        )


def _follow_injected_heads(strategy: Any) -> None:
    # Avalanche adds parameters that its optimiser does not know before the next experience, fails where it cannot
    # guess the group, and follows those that grow by their names: so the optimiser is to know all of them now.
    injected = [part for part in strategy.model.modules() if isinstance(part, InjectedHead)]
    if not injected:
        return
    lists = {p: group["params"] for group in strategy.optimizer.param_groups for p in group["params"]}
    head = injected[0]
    older = head.frozen.grown if isinstance(head.frozen, InjectedHead) else head.frozen
    for grown, *frozen in zip(*(part.parameters() for part in (head.grown, head.offset, older)), strict=True):
        lists[grown].extend(parameter for parameter in frozen if parameter not in lists)
    strategy.optimized_param_id = dict(strategy.model.named_parameters())


def method_settings(cls: type[Method]) -> dict[str, Any]:
    """Return what a method's class takes besides network and seed, with the defaults."""
    settings = {name: field.default for name, field in cls.Settings.__dataclass_fields__.items() if field.metadata}
    named = inspect.signature(cls.__init__).parameters.values()
    own = {p.name: p.default for p in named if p.kind is p.KEYWORD_ONLY and p.name not in ("seed", "target")}
    return {**settings, **own}


def _check(cls: type[Method], settings: Mapping[str, Any]) -> None:
    """Refuse wrong settings now, not at the first experience."""
    own = {name: value for name, value in settings.items() if name in declared(cls.Settings)}
    if issubclass(cls, Tortoise):
        with isolated_rng():
            cls(nn.Identity(), **{name: value for name, value in settings.items() if name != "average_buffers"})
        own.pop("momentum", None)
    cls.Settings.make(own)
    check_number(f"{cls.__name__}: seed", settings["seed"], integer=True)


def signature_of(plugin: type[MethodPlugin], init: Any = None) -> inspect.Signature:
    """Return the signature of a named plugin's constructor, or of `init` with the plugin's settings."""
    assert plugin.kind is not None
    keyword = inspect.Parameter.KEYWORD_ONLY
    known = {**method_settings(plugin.kind), "seed": 0}
    parameters = {name: inspect.Parameter(name, keyword, default=default) for name, default in known.items()}
    given = inspect.signature(init).parameters if init is not None else {}
    first = [p for p in given.values() if p.kind is not p.VAR_KEYWORD]
    last = [p for p in given.values() if p.kind is p.VAR_KEYWORD]
    return inspect.Signature([*first, *parameters.values(), *last])


def named_plugin(cls: type[Method]) -> type[MethodPlugin]:
    """Return the plugin of one method: ``ReDoPlugin(threshold=0.1)`` for ``MethodPlugin(ReDo, threshold=0.1)``."""
    summary = (inspect.getdoc(cls) or "").partition("\n\n")[0]

    class Named(MethodPlugin, supports_distributed=True):  # type: ignore[call-arg]
        kind = cls

        def __init__(self, *, seed: int = 0, **settings: Any) -> None:
            super().__init__(cls, seed=seed, **settings)

    Named.__name__ = Named.__qualname__ = f"{cls.__name__}Plugin"
    Named.__module__ = f"{__package__}.named"
    Named.__doc__ = f"{summary}\n\nA `MethodPlugin` of `ht_ray.methods.{cls.__name__}`, with its settings."
    Named.__signature__ = signature_of(Named)
    return Named
