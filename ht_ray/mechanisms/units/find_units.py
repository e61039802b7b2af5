"""Hidden units: where they are in a network.

A hidden unit is one output of a layer that passes an activation module and is then read by other layers: a row of the
incoming layer, and the columns of the outgoing ones. They are found by tracing the network symbolically; nothing runs.
"""

from __future__ import annotations

import inspect
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ht_ray._checks import did_you_mean
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms.units.crelu import CReLU, Doubling, Fourier
from ht_ray.mechanisms.weights.rng import isolated_rng

__all__ = [
    "ACTIVATIONS",
    "HiddenUnits",
    "Layers",
    "Outgoing",
    "UnitMap",
    "find_units",
    "recyclable_units",
    "sum_of_magnitudes",
    "watch_activations",
]

#: Layers named by hand: ``(incoming, activation, outgoing names)``, and perhaps the BatchNorm's name as a fourth.
Layers = Sequence[tuple[str, str, Sequence[str]] | tuple[str, str, Sequence[str], str]]

_Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_LAYERS = (nn.Linear, *_CONVOLUTIONS)
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Tanhshrink,
    nn.Softshrink, nn.Hardshrink, nn.Threshold, CReLU, Fourier,
)  # fmt: skip
"""The element-wise activation modules behind which units are found, and whose output is looked at."""
# As fx names what is called, without underscores around it.
_ACTIVATION_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "relu": F.relu, "relu6": F.relu6, "leaky_relu": F.leaky_relu, "elu": F.elu, "selu": F.selu, "celu": F.celu,
    "gelu": F.gelu, "silu": F.silu, "mish": F.mish, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid, "softplus": F.softplus, "softsign": F.softsign, "hardtanh": F.hardtanh,
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "tanhshrink": F.tanhshrink, "softshrink": F.softshrink,
    "hardshrink": F.hardshrink,
}  # fmt: skip
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPOUT_FUNCTIONS = frozenset(
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
)
_POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
)  # fmt: skip
_POOL_FUNCTIONS = frozenset(
    f"{kind}_pool{size}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for size in (1, 2, 3)
)
_SUMS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class Outgoing:
    """A layer that reads hidden units, and which of its input columns are whose.

    Parameters
    ----------
    layer
        Name of the layer.
    units
        Number of hidden units.
    halves
        2 where an activation doubles the units (CReLU: unit ``i`` comes as ``i`` and ``units + i``), otherwise 1.
    repeats
        Columns of a unit in each half: the positions of a map that was flattened, otherwise 1.
    interleaved
        Whether the flattened map was ``(positions, units)``, as tokens are, and not ``(units, positions)``.

    Examples
    --------
    >>> Outgoing("head", units=2, repeats=3).columns().tolist()
    [[[0, 1, 2], [3, 4, 5]]]
    >>> Outgoing("head", units=2, repeats=3, interleaved=True).columns().tolist()
    [[[0, 2, 4], [1, 3, 5]]]
    >>> Outgoing("head", units=2, halves=2).columns().tolist()
    [[[0], [1]], [[2], [3]]]
    """

    layer: str
    units: int
    halves: int = 1
    repeats: int = 1
    interleaved: bool = False

    def by_unit(self, values: Tensor) -> Tensor:
        """View what the layer's columns hold, ``(halves * units * repeats,)``, as ``(halves, units, repeats)``."""
        if self.interleaved:
            return values.view(self.repeats, self.halves, self.units).permute(1, 2, 0)
        return values.view(self.halves, self.units, self.repeats)

    def columns(self) -> Tensor:
        """Return the columns of each unit, int64 ``(halves, units, repeats)``."""
        return self.by_unit(torch.arange(self.halves * self.units * self.repeats))


@dataclass(frozen=True)
class HiddenUnits:
    """The hidden units behind one activation.

    Parameters
    ----------
    name
        Of the activation: its module's, with ``#2`` behind it for that module's second use and so on; of a function,
        ``"relu(conv1)"`` with the module whose output it takes.
    incoming
        Name of the layer whose rows they are: linear, or a convolution that is not grouped.
    norm
        Name of the BatchNorm between the two; None if there is none.
    units
        How many.
    dim
        Their dimension in the activation: 1 after convolutions, -1 after linear layers.
    outgoing
        The layers that read them.
    watched
        Name of the module whose output shows the activation.
    call, calls
        Which of its calls in a forward pass, from 0, and how many there are.
    function
        What makes the activation of that output; None if it is the activation.
    """

    name: str
    incoming: str
    norm: str | None
    units: int
    dim: int
    outgoing: tuple[Outgoing, ...]
    watched: str
    call: int = 0
    calls: int = 1
    function: Callable[[Tensor], Tensor] | None = None

    @property
    def halves(self) -> int:
        """2 where the activation doubles the units (CReLU), otherwise 1."""
        return self.outgoing[0].halves


@dataclass(frozen=True)
class UnitMap:
    """What `find_units` found.

    Parameters
    ----------
    hidden
        Units that can be recycled, in the order in which the network computes them.
    skipped
        Why those behind the other activations cannot, by the activation's name.
    """

    hidden: tuple[HiddenUnits, ...]
    skipped: Mapping[str, str]

    def reasons(self) -> str:
        """Return `skipped` as one sentence, activations of the same reason together."""
        names: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            names.setdefault(reason, []).append(name)
        return "; ".join(f"{', '.join(group)}: {reason}" for reason, group in names.items())


class _Refused(Exception):
    """Why units cannot be recycled, in words that follow "this activation: "."""


class _Tracer(fx.Tracer):
    """Records the calls of modules without children, whoever wrote them, and leaves the network as it was."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, nn.Sequential):
            return False
        return isinstance(m, _LAYERS) or not any(m.children()) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        try:
            self.path_of_module(m)
        except NameError:  # made in the forward pass: no part of the network, but what it calls is recorded
            return m.forward(*args, **kwargs)
        # Not through ``__call__``, which would run the hooks of containers.
        return super().call_module(m, m.forward, args, kwargs)

    def create_arg(self, a: Any) -> Any:
        # fx would register the constant as an attribute of the network.
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and a not in self.tensor_attrs:
            return self.create_node("get_attr", "constant", (), {})
        return super().create_arg(a)


def _trace(module: nn.Module) -> fx.Graph:
    # Arguments left out in ``module(batch)`` are what they are then: "mask=None" is no input.
    left_out = {
        name: parameter.default
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.default is None or isinstance(parameter.default, (bool, int, float))
    }
    try:
        with isolated_rng():
            return _Tracer().trace(module, concrete_args=left_out or None)
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise SettingError(
            f"find_units: {type(module).__name__} cannot be traced ({type(error).__name__}: {error}). Name its layers: "
            "layers=[(incoming layer, activation, (outgoing layers, ...)), ...]."
        ) from error


def _called(node: fx.Node) -> str:
    """Return the bare name of the function or method that `node` calls."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name.strip("_")


def _is_sum(node: fx.Node) -> bool:
    return (node.op == "call_function" and node.target in _SUMS) or (
        node.op == "call_method" and _called(node) == "add"
    )


def _asks_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return (
        node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim", "device", "dtype")
    )


def _is_batch_size(value: object) -> bool:
    if not isinstance(value, fx.Node):
        return False
    if value.op == "call_method" and value.target == "size":
        return bool(value.args[1:] == (0,) or value.kwargs.get("dim") == 0)
    if value.op == "call_function" and value.target is operator.getitem and value.args[1] == 0:
        shape = value.args[0]
        return isinstance(shape, fx.Node) and _asks_shape(shape) and shape.args[1:] in ((), ("shape",))
    return False


def _flattens(node: fx.Node, part: nn.Module | None) -> bool:
    """Return whether `node` makes ``(B, ...)`` into ``(B, features)``."""
    if part is not None:
        return isinstance(part, nn.Flatten) and (part.start_dim, part.end_dim) == (1, -1)
    rest = node.args[1:]
    if _called(node) == "flatten":
        start = rest[0] if rest else node.kwargs.get("start_dim", 0)
        end = rest[1] if len(rest) > 1 else node.kwargs.get("end_dim", -1)
        return (start, end) == (1, -1)
    if _called(node) in ("view", "reshape"):
        sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
        return len(sizes) == 2 and bool(sizes[1] == -1) and _is_batch_size(sizes[0])
    return False


def _puts_units_last(node: fx.Node) -> bool:
    """Return whether `node` makes maps ``(B, units, ...)`` into ``(B, ..., units)``."""
    order = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
    return _called(node) == "permute" and tuple(order) in ((0, 2, 1), (0, 2, 3, 1), (0, 2, 3, 4, 1))


def _readers(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if not _asks_shape(user)]


def _applied(name: str, rest: tuple[Any, ...], named: tuple[tuple[str, Any], ...], values: Tensor) -> Tensor:
    return _ACTIVATION_FUNCTIONS[name](values, *rest, **dict(named))


class _Seen(NamedTuple):
    """How an activation is looked at; fields as in `HiddenUnits`."""

    name: str
    watched: str
    part: nn.Module | None
    call: int
    calls: int
    function: Callable[[Tensor], Tensor] | None


class _Finder:
    """What is known of a module while its units are looked for."""

    def __init__(self, module: nn.Module, graph: fx.Graph | None = None) -> None:
        self.module = module
        self.parts: dict[str, nn.Module] = dict(module.named_modules(remove_duplicate=False))
        self.uses: Counter[int] = Counter()
        self.calls: Counter[int] = Counter()
        self.names: set[str] = set()
        self.owners: Counter[int] = Counter(
            id(parameter)
            for part in module.modules()
            for parameter in part._parameters.values()
            if parameter is not None
        )
        for node in graph.nodes if graph is not None else ():
            if node.op == "call_module":
                self.uses[id(self.parts[str(node.target)])] += 1
            elif node.op == "get_attr" and (owner := self.parts.get(str(node.target).rpartition(".")[0])) is not None:
                self.uses[id(owner)] += 1

    def words(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{node.target} ({type(self.parts[str(node.target)]).__name__})"
        return _called(node)

    def check_weights(self, name: str) -> None:
        """Refuse a layer or norm whose weights are not simply its own, to be changed."""
        part = self.parts[name]
        parameters = dict(part.named_parameters())
        if self.uses[id(part)] > 1:
            raise _Refused(f"{name} is used more than once")
        if any(is_lazy(tensor) for tensor in (*parameters.values(), *part.buffers())):
            raise _Refused(f"{name} has no values yet: run one batch through the network first")
        if not parameters.keys() <= {"weight", "bias"}:
            raise _Refused(f"{name} has other parameters than weight and bias")
        if any(self.owners[id(parameter)] > 1 for parameter in parameters.values()):
            raise _Refused(f"{name} shares its weights")
        if not all(parameter.requires_grad for parameter in parameters.values()):
            raise _Refused(f"{name} is frozen")

    def layer(self, name: str) -> _Layer:
        """Return a layer whose rows or columns are those of units."""
        part = self.parts[name]
        if not isinstance(part, _LAYERS):
            raise _Refused(f"{name} is a {type(part).__name__}; linear layers and convolutions have units")
        if isinstance(part, _CONVOLUTIONS) and part.groups > 1:
            raise _Refused(f"{name} is grouped")
        self.check_weights(name)
        return part

    def seen(self, node: fx.Node) -> _Seen:
        """Return how the activation that `node` computes can be looked at."""
        if node.op == "call_module":
            part = self.parts[str(node.target)]
            call = self.calls[id(part)]
            self.calls[id(part)] += 1
            name = str(node.target)
            while name in self.names:
                name = f"{node.target}#{call + 1}"
            self.names.add(name)
            return _Seen(name, str(node.target), part, call, self.uses[id(part)], None)
        before, *rest = node.args
        words = node.name
        if isinstance(before, fx.Node) and before.op == "call_module":
            watched = str(before.target)
            words = f"{_called(node)}({watched})"
            arguments = {name: value for name, value in node.kwargs.items() if name != "inplace"}
            if not any(isinstance(value, fx.Node) for value in (*rest, *arguments.values())):
                function = partial(_applied, _called(node), tuple(rest), tuple(arguments.items()))
                return _Seen(words, watched, None, 0, self.uses[id(self.parts[watched])], function)
        return _Seen(words, "", None, 0, 0, None)

    def hidden(
        self, seen: _Seen, incoming: str, norm: str | None, outgoing: Sequence[tuple[str, bool | None, bool]]
    ) -> HiddenUnits:
        """Return the units between these layers; outgoing ones as `after` has them, with None for what is unknown."""
        part = seen.part
        if part is None:
            if seen.function is None:
                raise _Refused("a function of more than a layer's output, so that nothing can look at it")
            if seen.calls > 1:
                raise _Refused(f"{seen.watched} is used more than once")
        elif not isinstance(part, ACTIVATIONS):
            raise _Refused(f"{type(part).__name__} is no activation")
        elif any(True for _ in part.parameters()):
            raise _Refused("it has parameters of its own")
        source = self.layer(incoming)
        if not callable(getattr(source, "reset_parameters", None)):
            raise _Refused(f"{incoming} has no reset_parameters() that draws its initial weights")
        convolution = isinstance(source, _CONVOLUTIONS)
        units = source.out_channels if isinstance(source, _CONVOLUTIONS) else source.out_features
        if norm is not None:
            between = self.parts[norm]
            if not isinstance(between, _BatchNorm) or between.num_features != units:
                raise _Refused(f"{norm} is no BatchNorm over the {units} units")
            self.check_weights(norm)
        if isinstance(part, Doubling) and part.dim not in ((1,) if convolution else (1, -1)):
            raise _Refused(f"it doubles dimension {part.dim}, not the units")
        halves = 2 if isinstance(part, Doubling) else 1
        return HiddenUnits(
            name=seen.name,
            incoming=incoming,
            norm=norm,
            units=units,
            dim=1 if convolution else -1,
            outgoing=tuple(self.outgoing(name, flat, last, units, halves, source) for name, flat, last in outgoing),
            watched=seen.watched,
            call=seen.call,
            calls=seen.calls,
            function=seen.function,
        )

    def outgoing(self, name: str, flat: bool | None, last: bool, units: int, halves: int, source: _Layer) -> Outgoing:
        target = self.layer(name)
        inputs = target.in_channels if isinstance(target, _CONVOLUTIONS) else target.in_features
        repeats, rest = divmod(inputs, units * halves)
        if isinstance(target, _CONVOLUTIONS):
            fits = isinstance(source, _CONVOLUTIONS) and not flat and repeats == 1
        elif isinstance(source, _CONVOLUTIONS):
            fits = flat is not False
        else:
            fits = repeats == 1 or (flat is not False and halves == 1)
        if not fits or rest or repeats == 0:
            raise _Refused(f"feeds {name}, whose {inputs} inputs are not those {units * halves} units")
        interleaved = repeats > 1 and (last or not isinstance(source, _CONVOLUTIONS))
        return Outgoing(name, units, halves, repeats, interleaved)

    def before(self, node: fx.Node) -> tuple[str, str | None]:
        """Return the layer whose outputs the activation at `node` takes, and the norm between them."""
        norm: str | None = None
        while True:
            node = node.all_input_nodes[0]
            name = str(node.target)
            part = self.parts[name] if node.op == "call_module" else None
            if node.op == "placeholder":
                raise _Refused("no layer before it")
            if _is_sum(node):
                raise _Refused("its input is a sum (residual stream)")
            if isinstance(part, (nn.LayerNorm, nn.GroupNorm)):
                raise _Refused(f"{type(part).__name__} before it mixes the units of a layer")
            if len(_readers(node)) > 1:
                raise _Refused(f"it is not alone in reading {self.words(node)}")
            if isinstance(part, _LAYERS):
                return name, norm
            if isinstance(part, _BatchNorm) and norm is None:
                norm = name
            elif not isinstance(part, (nn.Identity, *_DROPOUTS)):
                raise _Refused(f"its input comes from {self.words(node)}, not from a layer")

    def after(
        self, node: fx.Node, *, maps: bool, flat: bool = False, last: bool = False
    ) -> Iterator[tuple[str, bool, bool]]:
        """Yield the layers that read `node`, whether it is flattened on the way, and whether its units came last then.

        `maps` says that it holds maps ``(B, units, ...)``, over which pooling keeps units apart.
        """
        readers = _readers(node)
        if not readers:
            raise _Refused("nothing reads it")
        for reader in readers:
            part = self.parts[str(reader.target)] if reader.op == "call_module" else None
            called = _called(reader) if reader.op in ("call_function", "call_method") else ""
            if reader.op == "output":
                raise _Refused("it is an output of the network")
            if _is_sum(reader):
                raise _Refused("feeds a sum (residual stream)")
            if isinstance(part, _LAYERS):
                yield str(reader.target), flat, last
            elif isinstance(part, (nn.Identity, *_DROPOUTS)) or called in _DROPOUT_FUNCTIONS:
                yield from self.after(reader, maps=maps, flat=flat, last=last)
            elif maps and not flat and (isinstance(part, _POOLS) or called in _POOL_FUNCTIONS):
                yield from self.after(reader, maps=maps)
            elif maps and not flat and part is None and _puts_units_last(reader):
                yield from self.after(reader, maps=False, last=True)
            elif _flattens(reader, part):
                yield from self.after(reader, maps=maps, flat=True, last=last)
            else:
                raise _Refused(f"feeds {self.words(reader)}")


def find_units(module: nn.Module, *, layers: Layers | None = None) -> UnitMap:
    """Find the hidden units of a network behind each of its activations, and whether they can be recycled.

    The network is traced symbolically: it is not run, and neither it nor the random state changes. Units can be
    recycled where a linear layer or convolution, perhaps a BatchNorm, an activation (CReLU too), perhaps dropout,
    pooling and flattening, and other such layers follow each other, and the weights are trainable and used once.
    The units of a residual stream cannot: several layers write into each of them. A network may name its units
    itself: with a method ``unit_layers()`` that returns what `layers` is otherwise.

    Parameters
    ----------
    module
        The network, head included.
    layers
        The units to take, instead of tracing: tuples of an incoming layer's name, the activation's, those of the
        outgoing layers, and, if there is one between the first two, that of the BatchNorm. By default those that the
        network names.

    Raises
    ------
    SettingError
        If the network cannot be traced (its path depends on its input), or `layers` names what does not fit.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5), nn.Tanh())
    >>> found = find_units(net)
    >>> found.hidden[0].incoming, found.hidden[0].outgoing
    ('0', (Outgoing(layer='3', units=4, halves=1, repeats=36, interleaved=False),))
    >>> dict(found.skipped)
    {'4': 'it is an output of the network'}
    >>> find_units(net, layers=[("0", "1", ("3",))]).hidden == found.hidden
    True
    """
    if layers is None and callable(offered := getattr(module, "unit_layers", None)):
        layers = offered()
    return _named(_Finder(module), layers) if layers is not None else _traced(module)


def _traced(module: nn.Module) -> UnitMap:
    graph = _trace(module)
    finder = _Finder(module, graph)
    hidden: dict[str, HiddenUnits] = {}
    skipped: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            if _called(node) not in _ACTIVATION_FUNCTIONS:
                continue
        elif node.op != "call_module" or not isinstance(finder.parts[str(node.target)], ACTIVATIONS):
            continue
        seen = finder.seen(node)
        try:
            incoming, norm = finder.before(node)
            maps = isinstance(finder.parts[incoming], _CONVOLUTIONS)
            hidden[seen.name] = finder.hidden(seen, incoming, norm, list(finder.after(node, maps=maps)))
        except _Refused as reason:
            skipped[seen.name] = str(reason)
    return UnitMap(tuple(hidden.values()), skipped)


def _named(finder: _Finder, layers: Layers) -> UnitMap:
    hidden: list[HiddenUnits] = []
    for entry in layers:
        incoming, activation, outgoing, *rest = entry
        if isinstance(outgoing, str) or not outgoing or len(rest) > 1:
            raise SettingError(
                f"layers: {entry!r}: accepted is (incoming, activation, (outgoing, ...)), and the BatchNorm's name."
            )
        for name in (incoming, activation, *outgoing, *rest):
            if name not in finder.parts:
                raise SettingError(f"layers: {name!r}: the network has no such part.{did_you_mean(name, finder.parts)}")
        try:
            seen = _Seen(activation, activation, finder.parts[activation], 0, 1, None)
            found = finder.hidden(seen, incoming, rest[0] if rest else None, [(name, None, False) for name in outgoing])
        except _Refused as reason:
            raise SettingError(f"layers: {entry!r}: {activation}: {reason}.") from None
        hidden.append(found)
    return UnitMap(tuple(hidden), {})


def recyclable_units(where: str, module: nn.Module, layers: Layers | None, *, before: UnitMap | None) -> UnitMap:
    """Return `find_units`, for a mechanism that needs units.

    It warns of activations whose units cannot be recycled when it looks for the first time, and when none is left of a
    network that had some (its head was frozen, say).

    Parameters
    ----------
    where
        The mechanism's name, for messages.
    before
        What it found the last time; None if it has not looked yet.

    Raises
    ------
    SettingError
        If no unit can be recycled when it looks for the first time, or as `find_units`.
    """
    found = find_units(module, layers=layers)
    if before is not None:
        if before.hidden and not found.hidden:
            warnings.warn(
                f"{where}: no hidden units of {type(module).__name__} can be recycled any more ({found.reasons()}): it "
                "does nothing from here on.",
                SettingWarning,
                stacklevel=5,
            )
        return found
    if not found.hidden:
        raise SettingError(
            f"{where}: {type(module).__name__} has no hidden units that can be recycled "
            f"({found.reasons() or 'no activation modules'})."
        )
    if found.skipped:
        warnings.warn(
            f"{where}: units of {len(found.skipped)} of {len(found.skipped) + len(found.hidden)} activations cannot be "
            f"recycled and are left alone ({found.reasons()}).",
            SettingWarning,
            stacklevel=7,
        )
    return found


def sum_of_magnitudes(hidden: HiddenUnits, activation: Tensor) -> Tensor:
    """Return the sum of ``|activation|`` over all but the units, float32 or wider, ``(halves, units)``."""
    dims = [dim for dim in range(activation.dim()) if dim != hidden.dim % activation.dim()]
    wide = torch.promote_types(activation.dtype, torch.float32)
    return activation.detach().abs().sum(dims, dtype=wide).view(hidden.halves, hidden.units)


@contextmanager
def watch_activations(
    module: nn.Module, hidden: Sequence[HiddenUnits], see: Callable[[HiddenUnits, Tensor], None]
) -> Iterator[None]:
    """Call ``see(units, activation)`` whenever an activation is computed inside a ``with`` block.

    The hooks are gone after it. Not handled: a graph that ``torch.compile`` made before.
    """

    behind: dict[nn.Module, list[HiddenUnits]] = {}
    for units in hidden:
        behind.setdefault(module.get_submodule(units.watched), []).append(units)
    calls = dict.fromkeys(behind, 0)

    def hook(part: nn.Module, _inputs: Any, output: Tensor) -> None:
        call = calls[part]
        calls[part] = (call + 1) % behind[part][0].calls
        for units in behind[part]:
            if units.call == call:
                see(units, output if units.function is None else units.function(output.detach()))

    handles = [part.register_forward_hook(hook) for part in behind]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
