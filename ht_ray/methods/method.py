"""Methods: the moments of training at which they act, and their composition in one fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from ht_ray._checks import check_number
from ht_ray.errors import SettingError
from ht_ray.mechanisms.weights.optimizer_state import Optimizers
from ht_ray.methods.settings import MethodSettings

if TYPE_CHECKING:
    from ht_ray.methods.packed import PackedMethod
    from ht_ray.methods.tortoise import Tortoise

__all__ = ["FIRST", "Composition", "Inputs", "Method", "Phase", "check_logits"]

Inputs = Tensor | tuple[Tensor, ...]
"""A batch as the network is called with it: ``module(batch)``, or ``module(*batch)`` for a tuple."""


class Phase(NamedTuple):
    """A phase of a stream that begins, as far as its loop knows it."""

    number: int = 0
    """Its number, from 0."""
    epochs: int | None = None
    """How many it has; None: not known."""
    steps_per_epoch: int | None = None
    """How many optimiser steps an epoch has; None: not known."""
    begins: bool = True
    """Whether it really begins: False for a part of an online stream that goes on with the phase before."""
    losses: Callable[[nn.Module], Iterable[Tensor]] | None = None
    """Computes the loss ``()`` of each batch of an epoch of the phase, for a network of the same form; None: not known.
    The batches are drawn for this alone: those of training stay as they are."""


#: The first phase, of which nothing is known.
FIRST = Phase()


class Method:
    """Base of a method: it acts while a network trains, and every moment does nothing unless it is overridden.

    A training loop calls, for each phase, `before_phase` and then `grown`; for each batch `before_forward`, the network
    inside `watch`, `loss`, `before_step`, the optimiser's step, `after_step`; after each epoch `end_epoch`; and after
    the phase `end_phase`. A setting that reads "off" makes training bit-identical to training without the method.

    Several methods are combined with ``+`` into a `Composition`. At each moment they act in the order of their `rank`:
    those below 0 are part of the optimiser's step; the tortoise, of rank 0, follows it, and sets the hare back; those
    above 0 change both networks after it. Before a phase the latter come first: they change the network that others
    then look at.

    A class of its own is all that a new method takes: `name`, `title`, `rank`, its `Settings`, its moments, and
    `ht_ray.methods.register` before it.

    Parameters
    ----------
    module : nn.Module
        The network as initialised. A loop whose network is exchanged assigns the attribute of this name.
    settings : MethodSettings or None, default None
        An instance of the class's ``Settings``.
    seed : int, default 0
        Of what the method draws.
    **changes
        Settings that go before those of `settings`.

    Raises
    ------
    SettingError
        If a setting is not accepted, or the method cannot act on the network.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import torch
    >>> from ht_ray.methods import MethodSettings, setting
    >>> class SignDecay(Method):
    ...     '''Moves every weight towards zero by the same amount before each step.'''
    ...
    ...     name, title, rank = "sign_decay", "Sign Decay", -6
    ...
    ...     @dataclass(frozen=True, kw_only=True)
    ...     class Settings(MethodSettings):
    ...         amount: float = setting(1e-4, "How far each weight moves.", low=0)
    ...
    ...     @torch.no_grad()
    ...     def before_step(self, optimizer):
    ...         for weight in self.module.parameters():
    ...             weight -= self.settings.amount * weight.sign()
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(1.0)
    >>> SignDecay(layer, amount=0.25).before_step(None)
    >>> layer.weight.item()
    0.75
    """

    #: What it is called in code and on command lines.
    name: ClassVar[str] = ""
    #: What tables and figures call it.
    title: ClassVar[str] = ""
    #: Other names that are accepted for it.
    aliases: ClassVar[tuple[str, ...]] = ()
    #: Its place in the order; see the class.
    rank: ClassVar[float] = 0
    #: Whether it acts at the beginning of phases from the second on, unless it is given an interval.
    acts_before_phases: ClassVar[bool] = False
    #: Whether it is done once training is configured (see `configure_training`), and never acts.
    only_configures: ClassVar[bool] = False
    #: A method that is added where no other in the composition has a tortoise: its name.
    brings: ClassVar[str | None] = None
    #: Why it cannot act on an agent, whose outputs are values and whose training has no phases; None: it can.
    not_for_agents: ClassVar[str | None] = None
    #: Settings whose defaults differ for agents, where everything is counted in optimiser steps.
    agent_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    #: Settings that are tried where it is tuned, at most four, so that all methods have the same budget.
    tried: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    #: The same where each task is one epoch, if that makes a difference.
    tried_online: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    #: Whether what it does within a step may be captured as a CUDA graph, whose replay calls nothing of it:
    #: `before_forward`, `watch`, `loss`, `before_step` and, with a rank below 0, `after_step` change tensors in place,
    #: keep none, and neither count, draw nor decide on the host.
    capturable: bool = False
    #: What does the same within a step for several networks at once (see `ht_ray.methods.packed`). None: it does
    #: nothing within a step, or it cannot be packed.
    packed: ClassVar[type[PackedMethod] | None] = None
    #: Its attributes that count something, and those that hold tensors by name, which are part of its state.
    counters: ClassVar[tuple[str, ...]] = ()
    held_tensors: ClassVar[tuple[str, ...]] = ()

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """No settings."""

    settings: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Settings" in vars(cls):
            cls.Settings.owner = cls.__name__

    def __init__(self, module: nn.Module, settings: Any = None, *, seed: int = 0, **changes: Any) -> None:
        check_number(f"{type(self).__name__}: seed", seed, integer=True)
        if settings is not None and not isinstance(settings, MethodSettings):
            raise SettingError(
                f"{type(self).__name__}: settings = {settings!r}: accepted is {type(self).__name__}.Settings(...), or "
                "settings by their names, as in method(module, seed=0)."
            )
        held = {} if settings is None else {one.name: getattr(settings, one.name) for one in fields(settings)}
        self.settings = type(self).Settings.make({**held, **changes})
        self.module = module
        self.seed = seed
        self._begin()

    def _begin(self) -> None:
        """Set what the method holds at first; its settings, network and seed are there."""

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Settings can be read as attributes.
            settings = self.__dict__.get("settings")
            if settings is not None and name in settings.__dataclass_fields__:
                return getattr(settings, name)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __add__(self, other: Method | Composition) -> Composition:
        """Return both as one, which acts in the order of their ranks."""
        return Composition(self.module, [self]) + other

    # What a method may change of training and of the network, before there is one; `config` is a frozen dataclass.

    @classmethod
    def configure_training(cls, settings: Any, config: Any, shape: tuple[int, ...]) -> Any:
        """Return how a network is trained with this method, on images ``(C, H, W)``."""
        return config

    @classmethod
    def configure_model(cls, settings: Any, config: Any) -> Any:
        """Return which network is built with this method.

        Raises
        ------
        SettingError
            If the network does not come in that form.
        """
        return config

    def configure_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Return what trains the network in place of `optimizer`, which a loop has made over it, or that itself.

        Parameters
        ----------
        optimizer : Optimizer
            New, or one that this returned before.

        Raises
        ------
        SettingError
            If the method cannot do with it.
        """
        return optimizer

    # The moments.

    def before_phase(self, phase: Phase = FIRST, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Call before a phase's first epoch.

        Parameters
        ----------
        phase : Phase, default FIRST
            Which begins.
        optimizer : Optimizer or sequence of Optimizer, default None
            That trains the network.
        tortoise : Tortoise or None, default None
            The tortoise that is to be treated as the network is; None leaves it alone.
        """

    def grown(self) -> None:
        """Call once the network has its form for a phase, with the parts that it has grown or lost: find them."""

    def resume(self, batches: Callable[[int], Iterable[Inputs]]) -> None:
        """Call in place of `before_phase` where a phase goes on, once the state of before it is loaded.

        Parameters
        ----------
        batches : callable
            Returns the inputs of the last so many batches before this moment: they are not part of the state.
        """

    def before_forward(self, inputs: Inputs, tortoise: Tortoise | None = None) -> None:
        """Call before the network computes a training batch.

        Parameters
        ----------
        inputs : Tensor or tuple of Tensor
            The batch.
        tortoise : Tortoise or None, default None
            The network's tortoise, if it has one.
        """

    def watch(self) -> AbstractContextManager[Any]:
        """Return a context around the training forward pass, for methods that look at activations."""
        return nullcontext()

    def loss(self, outputs: Tensor) -> Tensor | None:
        """Return what is added to the loss of the batch, shape ``()``; None for nothing.

        Parameters
        ----------
        outputs : Tensor
            The network's logits ``(B, K)``, float32.
        """
        return None

    def before_step(self, optimizer: Any) -> None:
        """Call when the gradients are as the optimiser will see them."""

    def after_step(self, optimizer: Any = None, tortoise: Tortoise | None = None) -> None:
        """Call after the optimiser's step; arguments as in `before_phase`."""

    def end_epoch(self, optimizer: Any = None, tortoise: Tortoise | None = None, *, last: bool = False) -> bool | None:
        """Call after each epoch, before evaluation.

        Parameters
        ----------
        optimizer, tortoise
            As in `before_phase`.
        last : bool, default False
            Whether it was the phase's last.

        Returns
        -------
        bool or None
            Whether something was due, of a method that says so.
        """
        return None

    def end_phase(self) -> None:
        """Call after a phase."""

    def not_packed(self) -> str:
        """Return why a method of these settings cannot be packed (see `packed`); nothing if nothing is known."""
        return ""

    # State.

    def rebuild(self, state: Mapping[str, Any]) -> None:
        """Give the network the structure that it had in `state`; call before the network's own state is loaded."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from; settings are not part of it."""
        tensors = {name: _cloned(getattr(self, name)) for name in self.held_tensors}
        return {**{name: getattr(self, name) for name in self.counters}, **tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, once the network has been rebuilt and loaded."""
        for name in self.counters:
            setattr(self, name, int(state[name]))
        for name in self.held_tensors:
            setattr(self, name, _cloned(state[name]))

    def _check_not_predicting(self, tortoise: Tortoise | None) -> None:
        if tortoise is not None and tortoise.predicting:
            raise RuntimeError(f"{type(self).__name__}.apply while the tortoise predicts: stop predicting first")

    def _due(self, unit: str, count: int) -> bool:
        """Return whether the settings' interval ends at this count of epochs or steps."""
        own = self.settings
        return own.unit == unit and own.interval is not None and count % own.interval == 0


def _cloned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _overrides(method: Method, moment: str) -> bool:
    return getattr(type(method), moment) is not getattr(Method, moment)


def check_logits(title: str, outputs: Any) -> None:
    """Raise `SettingError` unless a network's `outputs` are logits, for a method of this title that looks at them."""
    if not isinstance(outputs, Tensor) or outputs.dim() < 2:
        found = f"a tensor of shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise SettingError(
            f"{title}: the network returns {found}: accepted are logits, a tensor of shape (samples, classes)."
        )


def _refused_momenta(tortoise: Tortoise, reason: str, **values: Any) -> SettingError:
    momenta = tortoise.settings.momenta
    return SettingError(owner="MethodConfig", field="tortoise_momenta", value=momenta, reason=reason, **values)


class Composition:
    """Methods over one network, called by a training loop at each moment, which act in one fixed order.

    However they are given, they act in the order of their `Method.rank`. Before a phase: the tortoise; Shrink &
    Perturb, Head Reset, plasticity injection, each on hare and tortoise; then all others. At a step: loss terms (L2,
    spectral decoupling, regenerative, self-distillation); the decays apart from the gradient; the optimiser's step with
    UPGD's gate and weight clipping; the tortoise follows and, if due, the hare is reset; Shrink & Perturb, Head Reset,
    continual backprop, ReDo, ReGraMa, optimiser reset. At the end of an epoch: the hare's reset, ReDo, ReGraMa,
    optimiser reset.

    Parameters
    ----------
    module : nn.Module
        The network.
    methods : sequence of Method
        Over that network. The composition is fixed: combine with ``+`` to make another.

    Raises
    ------
    SettingError
        If one is over another network, there is more than one tortoise, or one of several speeds with a method that
        re-initialises one alone.

    Attributes
    ----------
    validate : callable or None
        Returns how good the network is on validation data: a number, or a tuple of numbers, of which the largest is
        best. A loop sets it. None: there is no validation data.

    Examples
    --------
    >>> from ht_ray.methods import HareTortoise, L2
    >>> net = nn.Linear(2, 1)
    >>> both = L2(net) + HareTortoise(net, momentum=0.9)
    >>> both.name, both.tortoise.momentum
    ('l2+hare_tortoise', 0.9)
    """

    def __init__(self, module: nn.Module, methods: Sequence[Method] = ()) -> None:
        from ht_ray.methods.tortoise import Tortoise  # which is a method itself

        for method in methods:
            if method.module is not module:
                raise SettingError(
                    f"methods: {type(method).__name__} is over another network: make all over the one that is trained."
                )
        tortoises = [method for method in methods if isinstance(method, Tortoise)]
        if len(tortoises) > 1:
            named = " and ".join(type(method).__name__ for method in tortoises)
            raise SettingError(f"methods: a network takes one tortoise; it has {named}.")
        self._module = module
        self.tortoise: Tortoise | None = tortoises[0] if tortoises else None
        self.validate: Callable[[], Any] | None = None
        self._several = next((one for one in tortoises if len(one.copies) > 1), None)
        treating = [one.name for one in methods if getattr(one.settings, "reinitialize_tortoise", False)]
        if self._several is not None and treating:
            raise _refused_momenta(
                self._several,
                ": {named} re-initialises one tortoise: accepted is {MethodConfig.reinitialize_tortoise} = False.",
                named=" and ".join(treating),
            )
        self._methods = tuple(methods)
        ordered = sorted(methods, key=lambda method: method.rank)
        self._ordered = tuple(ordered)
        self._in_step = [m for m in ordered if m.rank < 0 and _overrides(m, "after_step")]
        later = [m for m in ordered if m.rank >= 0 and m is not self.tortoise]
        self._after_step = [m for m in later if _overrides(m, "after_step")]
        self._watching = [m for m in ordered if _overrides(m, "watch")]
        self._losing = [m for m in ordered if _overrides(m, "loss")]
        self._entering = [m for m in ordered if _overrides(m, "before_forward") and m is not self.tortoise]
        self._before_step = [m for m in ordered if _overrides(m, "before_step")]

    def __add__(self, other: Method | Composition) -> Composition:
        """Return all as one."""
        more = other.methods if isinstance(other, Composition) else (other,)
        return Composition(self.module, [*self._methods, *more])

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods, as given."""
        return self._methods

    @property
    def by_name(self) -> Mapping[str, Method]:
        """The methods by their names; of two of one kind, the second is called ``"head_reset 2"``, and so on."""
        found: dict[str, Method] = {}
        for method in self._methods:
            number = sum(before.name == method.name for before in found.values()) + 1
            found[method.name if number == 1 else f"{method.name} {number}"] = method
        return MappingProxyType(found)

    @property
    def name(self) -> str:
        """The methods' names, joined by ``+``."""
        return "+".join(method.name for method in self._methods) or "plain"

    @property
    def module(self) -> nn.Module:
        """The network; where a loop exchanges it, assign the new one."""
        return self._module

    @module.setter
    def module(self, module: nn.Module) -> None:
        self._module = module
        for method in self._methods:
            method.module = module

    @property
    def not_capturable(self) -> tuple[str, ...]:
        """Names of the methods that cannot be part of a CUDA graph (see `Method.capturable`)."""
        return tuple(method.name for method in self._ordered if not method.capturable)

    @property
    def watching(self) -> tuple[str, ...]:
        """Names of the methods that look at activations, which ``torch.compile`` may hide from them."""
        return tuple(method.name for method in self._watching)

    def describe(self) -> dict[str, Any]:
        """Return names and settings as plain data."""
        return {"name": self.name, "settings": {name: asdict(one.settings) for name, one in self.by_name.items()}}

    def training(self, config: Any, shape: tuple[int, ...]) -> Any:
        """Return how the network is trained with these methods; see `MethodConfig.training`."""
        for method in self._methods:
            config = method.configure_training(method.settings, config, shape)
        return config

    def _validation(self) -> Any:
        if self._several is not None and self.validate is None:
            raise _refused_momenta(
                self._several,
                ": which tortoise predicts is chosen on validation data, and there is none: hold some out (hold_out; "
                "--validation in a study), or give one momentum.",
            )
        return self.validate

    def configure_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Return what trains the network in place of `optimizer`; see `Method.configure_optimizer`."""
        for method in self._methods:
            optimizer = method.configure_optimizer(optimizer)
        return optimizer

    def _treated(self, method: Method) -> Tortoise | None:
        return self.tortoise if getattr(method.settings, "reinitialize_tortoise", True) else None

    def before_phase(self, phase: Phase, optimizer: Optimizers | None = None) -> None:
        """Call before the first epoch of a phase.

        Raises
        ------
        SettingError
            If several tortoises are to be chosen from, and there is no validation data.
        """
        self._validation()
        # What changes the network acts before what looks at it.
        for method in sorted(self._ordered, key=lambda method: method.rank < 0):
            method.before_phase(phase, optimizer, self._treated(method))
        for method in self._ordered:
            method.grown()

    def resume(self, batches: Callable[[int], Iterable[Inputs]]) -> None:
        """Call in place of `before_phase` where a phase goes on; see `Method.resume`."""
        for method in self._ordered:
            method.resume(batches)

    def before_forward(self, inputs: Inputs) -> None:
        """Call before the network computes a training batch."""
        for method in self._entering:
            method.before_forward(inputs, self.tortoise)

    def watch(self) -> AbstractContextManager[Any]:
        """Return a context for the training forward pass."""
        return _entered(self._watching) if self._watching else nullcontext()

    def loss(self, loss: Tensor, outputs: Tensor) -> Tensor:
        """Return `loss` with the terms that the methods add to it.

        Parameters
        ----------
        loss : Tensor
            Of the batch.
        outputs : Tensor
            The network's logits, float32 of shape ``(B, K)``.
        """
        for method in self._losing:
            term = method.loss(outputs)
            if term is not None:
                loss = loss + term
        return loss

    def before_step(self, optimizer: Any) -> None:
        """Call before every optimiser step, when gradients are as it will see them."""
        for method in self._before_step:
            method.before_step(optimizer)

    def update(self, optimizer: Any) -> None:
        """Call after every optimiser step: what belongs to it, and the tortoise's average.

        The first half of `after_step`: tensors are changed in place, and nothing is decided, so that it may be part of
        a CUDA graph, whose replay calls nothing.
        """
        for method in self._in_step:
            method.after_step(optimizer, self._treated(method))
        if self.tortoise is not None:
            self.tortoise.average()

    def after_update(self, optimizer: Any, inputs: Inputs | None = None) -> bool:
        """Call after `update`, or its replay, with the batch: resets and recycling that are due.

        Returns
        -------
        bool
            Whether network and optimiser may have been changed.
        """
        reset = False
        if self.tortoise is not None:
            if inputs is not None:
                self.tortoise.see(inputs)
            reset = self.tortoise.count_step(optimizer)
        for method in self._after_step:
            method.after_step(optimizer, self._treated(method))
        return reset or bool(self._after_step)

    def after_step(self, optimizer: Any, inputs: Inputs | None = None) -> None:
        """Call after every optimiser step, with its batch: `update` and `after_update`."""
        self.update(optimizer)
        self.after_update(optimizer, inputs)

    def end_epoch(self, optimizer: Any, *, last: bool) -> None:
        """Call after every epoch, before evaluation."""
        if self._several is not None:
            self._several.choose(self._validation())
        for method in sorted(self._ordered, key=lambda method: method.rank < 0):
            method.end_epoch(optimizer, self._treated(method), last=last)

    def end_phase(self) -> None:
        """Call after a phase."""
        for method in self._ordered:
            method.end_phase()

    def predict(self) -> AbstractContextManager[Any]:
        """Let the network compute as these methods predict: with the tortoise, if there is one."""
        return self.tortoise.predict() if self.tortoise is not None else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and counters to continue from."""
        return {name: method.state_dict() for name, method in self.by_name.items()}

    def rebuild(self, state: Mapping[str, Any]) -> None:
        """Give the network the structure that it had in `state`; call before its own state is loaded.

        Raises
        ------
        ValueError
            If `state` is of other methods.
        """
        if state.keys() != (held := self.by_name).keys():
            raise ValueError(f"the state is of {sorted(state)}; {self.name!r} has {sorted(held)}")
        for name, method in held.items():
            method.rebuild(state[name])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, once the network has been rebuilt and loaded.

        Raises
        ------
        ValueError
            If `state` is of other methods, or of another network.
        """
        self.rebuild(state)
        for name, method in self.by_name.items():
            method.grown()
            method.load_state_dict(state[name])


@contextmanager
def _entered(methods: list[Method]) -> Iterator[None]:
    with ExitStack() as stack:
        for method in methods:
            stack.enter_context(method.watch())
        yield
