"""A named copy of a module's tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ht_ray.mechanisms.weights.buffers import averaged_buffers, step_counters
from ht_ray.mechanisms.weights.spectral_norm import spectral_layers
from ht_ray.mechanisms.weights.structure import Structure

__all__ = ["WeightCopy", "named_tensors"]


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield name and live tensor of every parameter and buffer of `module`.

    Tied tensors come once, under their first name. Names are those of ``module.state_dict()``; buffers that are not
    persistent are included.
    """
    seen: set[int] = set()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _held_dtype(tensor: Tensor) -> torch.dtype:
    # An average with momentum near 1 stalls in 16 bits: 0.001 of a difference is below half a unit in the last place.
    narrow = tensor.is_floating_point() and tensor.element_size() < 4
    return torch.float32 if narrow else tensor.dtype


def _refusal(live: Tensor) -> str:
    """Return why this tensor cannot be copied and written in place; nothing if it can."""
    if is_lazy(live):
        return "is lazy and has no values yet: run one batch through the module first"
    if live.is_meta:
        return "is on the meta device and has no values: materialise the module first"
    if live.layout != torch.strided:
        return f"has the layout {live.layout}: accepted are dense tensors"
    if any(size > 1 and stride == 0 for size, stride in zip(live.shape, live.stride(), strict=True)):
        return "is expanded and cannot be written to: register a clone of it"
    return ""


def _following(old: Tensor | None, live: Tensor) -> Tensor:
    """Return `old` in the form of `live`: same shape and device; units that `old` has not are those of `live`."""
    if old is not None and old.shape == live.shape:
        return old.to(live.device, _held_dtype(live))
    new = live.detach().to(_held_dtype(live), copy=True)
    if old is not None and old.dim() == new.dim():
        block = tuple(slice(0, min(a, b)) for a, b in zip(old.shape, new.shape, strict=True))
        new[block] = old[block].to(new.device, new.dtype)
    return new


def _target_tensors(module: nn.Module, target: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of `target` by name, in the order of those of `module`."""
    live, held = dict(named_tensors(module)), dict(named_tensors(target))
    different = [
        name
        for name in {**live, **held}
        if name not in live
        or name not in held
        or (live[name].shape, live[name].dtype, live[name].device)
        != (held[name].shape, held[name].dtype, held[name].device)
    ]
    if different:
        raise ValueError(f"the target is not of the module's structure: it differs in {different}")
    shared = [name for name in live if live[name].numel() and live[name].data_ptr() == held[name].data_ptr()]
    if shared:
        raise ValueError(f"the target shares the storage of {shared} with the module")
    return {name: held[name] for name in live}


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, those of the same types at once."""
    for into, of in _alike(targets, sources):
        torch._foreach_copy_(into, of)


def _alike(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Return targets and sources in lists of the same types.

    Given lists of several types, some versions of torch take the first tensor's kernel for all of them on a GPU.
    """
    alike: dict[tuple[torch.dtype, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        into, of = alike.setdefault((target.dtype, source.dtype), ([], []))
        into.append(target)
        of.append(source)
    return list(alike.values())


class _Binding:
    """The tensor lists of one module with those of its copy, built once and reused while nothing is replaced."""

    def __init__(
        self,
        module: nn.Module,
        copies: Mapping[str, Tensor],
        target: nn.Module | None = None,
        average_buffers: Collection[str] = (),
    ) -> None:
        self.module = module
        self.structure = Structure(module, *(() if target is None else (target,)))
        self.metas: list[tuple[Tensor, torch.Size, torch.device, torch.dtype]] = []
        self.live: dict[str, Tensor] = {}
        self.same_live: list[Tensor] = []
        self.same_copy: list[Tensor] = []
        self.wide_live: list[Tensor] = []
        self.wide_copy: list[Tensor] = []
        self.exact_live: list[Tensor] = []
        self.exact_copy: list[Tensor] = []
        self.own_live: list[Tensor] = []
        self.own_copy: list[Tensor] = []
        self.kept_live: list[Tensor] = []
        self.kept_copy: list[Tensor] = []
        # A target computes at any time: its spectral norm's vectors are its own, and follow its weights.
        self.spectral = spectral_layers(target) if target is not None else []
        kept = {id(vector) for layer in self.spectral for vector in layer.vectors}
        averaged = averaged_buffers(module, average_buffers) | set(map(id, module.parameters()))
        counters = step_counters(module)
        for name, live in named_tensors(module):
            copy = copies[name]
            self.live[name] = live
            self.metas.append((live, live.shape, live.device, live.dtype))
            if id(copy) in kept:
                self.kept_live.append(live)
                self.kept_copy.append(copy)
            elif id(live) in averaged and (live.is_floating_point() or live.is_complex()):
                if live.dtype == copy.dtype:
                    self.same_live.append(live)
                    self.same_copy.append(copy)
                else:
                    self.wide_live.append(live)
                    self.wide_copy.append(copy)
            elif id(live) in counters:
                self.exact_live.append(live)
                self.exact_copy.append(copy)
            else:
                self.own_live.append(live)
                self.own_copy.append(copy)
        #: What a step of the average copies.
        self.copied = _alike([*self.exact_copy, *self.own_copy], [*self.exact_live, *self.own_live])
        self.all_live = [*self.same_live, *self.wide_live, *self.exact_live, *self.own_live, *self.kept_live]
        self.all_copy = [*self.same_copy, *self.wide_copy, *self.exact_copy, *self.own_copy, *self.kept_copy]
        self.tensors = list(self.live.values())
        self.memory = self._memory()

    def holds(self, module: nn.Module) -> bool:
        """Return whether `module` still consists of the very tensors of these lists, as they were.

        Called at every step: what can be compared in C is, and only a difference is looked into.
        """
        if module is not self.module or not self.structure.holds():
            return False
        memory = self._memory()
        if memory == self.memory:
            return True
        for live, shape, device, dtype in self.metas:
            if live.shape != shape or live.device != device or live.dtype != dtype:
                return False
        self.memory = memory
        return True

    def _memory(self) -> tuple[list[int], list[int]]:
        # ``parameter.data = other`` keeps the parameter; where it lies in memory tells.
        return list(map(Tensor.data_ptr, self.tensors)), list(map(Tensor.numel, self.tensors))


class WeightCopy:
    """A named copy of a module's tensors: clone, copy, average, exchange, grow with the module.

    The copy never shares storage with the module, and every operation works in place on the module's own tensors, so
    parameter identity, optimisers, hooks and compiled graphs stay valid. It knows nothing of policy: when and how
    much is decided by those who use it (`Tortoise`, `ShrinkPerturb`, `HeadReset`).

    Floating-point and complex parameters are averaged, and so are the running statistics of normalisation layers
    (BatchNorm, SyncBatchNorm, InstanceNorm, subclasses) and what `average_buffers` names. All other buffers (masks,
    indices, unit vectors, scales, counters, and what is not known) are copied. Tensors narrower than 32 bits are held
    in float32. Tied parameters are held once.

    The module is passed to each operation. Its tensor lists are built at the first one and reused while the module
    consists of the same tensors; when a parameter was replaced, a head has grown or the module has moved to another
    device, the copy follows: known units keep their held values, new ones take the module's.

    Not handled: tensors that have no values yet (lazy modules, the meta device), are sparse, or cannot be written to
    (expanded ones); and plain attributes that are neither parameters nor buffers.

    Parameters
    ----------
    module
        What to copy.
    target
        A module of the same structure whose own tensors hold the copy, instead of new ones, in their own precision.
        It keeps the values that it has. When `module` changes its structure, so must the target. Its spectral norm's
        vectors are never copied: with each average they follow its own weights by a power iteration.
    average_buffers
        Names of more floating-point buffers that are averaged, with the wildcards of `fnmatch`.

    Raises
    ------
    ValueError
        If `module` has such a tensor, or `target` differs in names, shapes, types or devices, or shares its storage.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> copy = WeightCopy(layer)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(1.0)
    >>> copy.copy_from(layer)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(3.0)
    >>> copy.lerp_from(layer, 0.25)
    >>> copy["weight"].tolist()
    [[1.5, 1.5]]
    >>> copy.swap(layer)
    >>> layer.weight.tolist(), copy["weight"].tolist()
    ([[1.5, 1.5]], [[3.0, 3.0]])
    """

    def __init__(
        self, module: nn.Module, target: nn.Module | None = None, *, average_buffers: Collection[str] = ()
    ) -> None:
        self._target = target
        self._average_buffers = tuple(average_buffers)
        self._values: dict[str, Tensor] = {}
        # While exchanged: the wide (float32) values that were rounded on their way into the module's narrow tensors.
        self._parked: dict[str, Tensor] = {}
        self._swapped = False
        self._binding: _Binding | None = None
        self.sync(module)

    def __getstate__(self) -> dict[str, Any]:
        # The binding refers to the module; a copy or pickle of this object must not drag the module along.
        return {**self.__dict__, "_binding": None}

    def __getitem__(self, name: str) -> Tensor:
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    @property
    def swapped(self) -> bool:
        """Whether the values are at present exchanged with the module's."""
        return self._swapped

    @property
    def target(self) -> nn.Module | None:
        """The module whose tensors hold the copy, if it was given one."""
        return self._target

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The held tensors by name; they may be changed in place."""
        return self._values

    # Not in inference mode, whose tensors could not be averaged afterwards.
    @torch.inference_mode(False)
    @torch.no_grad()
    def sync(self, module: nn.Module) -> None:
        """Follow changes of structure: growth, replaced or removed parameters, device and dtype.

        Held values stay; new units, and tensors with a new number of dimensions, take the module's values. All other
        operations call this by themselves.

        Raises
        ------
        ValueError
            If `module` has a tensor that is not handled (lazy, meta, sparse, expanded), or is no longer of the target's
            structure; nothing is changed then.
        """
        if self._binding is not None and self._binding.holds(module):
            return
        values: dict[str, Tensor] = {}
        parked: dict[str, Tensor] = {}
        for name, live in named_tensors(module):
            if refusal := _refusal(live):
                raise ValueError(f"tensor {name!r} {refusal}")
            if self._target is not None:
                continue
            values[name] = _following(self._values.get(name), live)
            if self._swapped and values[name].dtype != live.dtype:
                parked[name] = _following(self._parked.get(name), live)
        if self._target is not None:
            values = _target_tensors(module, self._target)
        self._values, self._parked = values, parked
        self._binding = _Binding(module, values, self._target, self._average_buffers)

    def averaged(self, module: nn.Module) -> list[Tensor]:
        """Return those of the held tensors that `lerp_from` averages; the others are copied."""
        bound = self._bound(module)
        return [*bound.same_copy, *bound.wide_copy]

    def rename(self, names: Mapping[str, str]) -> None:
        """Give held tensors the names that the module's now have, so that the next `sync` keeps their values.

        Parameters
        ----------
        names
            New names by old ones; tensors that it does not name keep theirs.

        Raises
        ------
        ValueError
            If an old name is not held, or two tensors would have one name; nothing is changed then.
        """
        if unknown := sorted(names.keys() - self._values.keys()):
            raise ValueError(f"no tensors are held under {unknown}")
        renamed = [names.get(name, name) for name in self._values]
        if twice := sorted(name for name, times in Counter(renamed).items() if times > 1):
            raise ValueError(f"several tensors would be called {twice}")
        self._values = dict(zip(renamed, self._values.values(), strict=True))
        self._parked = {names.get(name, name): value for name, value in self._parked.items()}
        self._binding = None

    def _bound(self, module: nn.Module) -> _Binding:
        if self._binding is None or not self._binding.holds(module):
            self.sync(module)
        assert self._binding is not None
        return self._binding

    @torch.no_grad()
    def copy_from(self, module: nn.Module) -> None:
        """Set the copy to the module's values."""
        bound = self._bound(module)
        self._refuse_swapped("copy_from")
        copy_all(bound.all_copy, bound.all_live)

    @torch.no_grad()
    def copy_to(self, module: nn.Module, names: Collection[str] | None = None) -> None:
        """Set the module to the copy's values.

        Parameters
        ----------
        names
            Restrict it to these tensors; None: all.
        """
        bound = self._bound(module)
        self._refuse_swapped("copy_to")
        if names is None:
            copy_all(bound.all_live, bound.all_copy)
            return
        chosen = {id(bound.live[name]) for name in names}
        pairs = [pair for pair in zip(bound.all_live, bound.all_copy, strict=True) if id(pair[0]) in chosen]
        copy_all([live for live, _ in pairs], [held for _, held in pairs])

    @torch.no_grad()
    def copy_own_from(self, module: nn.Module) -> None:
        """Set what is neither averaged nor counts an average's steps to the module's values: masks, indices, scales.

        Such buffers are the module's own, and may have changed since the last average: a mask when it was pruned.
        """
        bound = self._bound(module)
        self._refuse_swapped("copy_own_from")
        if bound.own_copy:
            copy_all(bound.own_copy, bound.own_live)

    @torch.no_grad()
    def lerp_from(self, module: nn.Module, weight: float) -> None:
        """Move the copy towards the module: ``copy += weight * (module - copy)``.

        A `weight` of 1 makes them equal, exactly. Tensors that are not averaged are copied.
        """
        bound = self._bound(module)
        self._refuse_swapped("lerp_from")
        if bound.same_copy:
            torch._foreach_lerp_(bound.same_copy, bound.same_live, weight)
        if bound.wide_copy:
            wide = [live.to(copy.dtype) for live, copy in zip(bound.wide_live, bound.wide_copy, strict=True)]
            torch._foreach_lerp_(bound.wide_copy, wide, weight)
        for into, of in bound.copied:
            torch._foreach_copy_(into, of)
        for layer in bound.spectral:
            layer.fit()

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the values of copy and module; a second call puts everything back, exactly.

        Takes memory for one more set of values while it runs. Values wider than the module's are rounded into it; the
        second call brings the unrounded ones back where the module's were not changed meanwhile.
        """
        bound = self._bound(module)
        # First all values are set aside, then all are written: tensors of the module that share storage stay right.
        live, held = bound.all_live, bound.all_copy
        kept = [tensor.clone() for tensor in live]
        wide = {
            name: self._values[name] for name, tensor in bound.live.items() if tensor.dtype != self._values[name].dtype
        }
        parked = {name: value.clone() for name, value in wide.items()} if not self._swapped else {}
        copy_all(live, held)
        copy_all(held, kept)
        for name, value in wide.items() if self._swapped else ():
            before = self._parked[name]
            value.copy_(torch.where(value == before.to(bound.live[name].dtype), before, value))
        self._parked = parked
        self._swapped = not self._swapped

    @torch.no_grad()
    def squared_distance(self, module: nn.Module, names: Collection[str] | None = None) -> Tensor:
        """Return the sum of squared differences to the module's trainable parameters, a tensor of shape ``()``.

        Parameters
        ----------
        names
            Restrict the sum to these parameters.
        """
        self.sync(module)
        total = torch.zeros(())
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and name in self._values and (names is None or name in names):
                difference = self._values[name] - parameter.detach()
                total = total.to(difference.device) + difference.abs().square().sum()
        return total

    def state_dict(self) -> dict[str, Tensor]:
        """Return the held tensors by name (references, as ``nn.Module.state_dict`` does).

        Raises
        ------
        RuntimeError
            While the values are exchanged with the module's.
        """
        self._refuse_swapped("state_dict")
        return dict(self._values)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Set the held values from `state`.

        Raises
        ------
        ValueError
            If names or shapes differ from those held; nothing is changed then.
        RuntimeError
            While the values are exchanged with the module's.
        """
        self._refuse_swapped("load_state_dict")
        missing = sorted(self._values.keys() - state.keys())
        unexpected = sorted(state.keys() - self._values.keys())
        shapes = [
            f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
            for name, value in self._values.items()
            if name in state and state[name].shape != value.shape
        ]
        if missing or unexpected or shapes:
            raise ValueError(
                f"the state is of another module: missing {missing}, unexpected {unexpected}, other shapes {shapes}"
            )
        for name, value in self._values.items():
            value.copy_(state[name])

    def _refuse_swapped(self, operation: str) -> None:
        if self._swapped:
            raise RuntimeError(f"WeightCopy.{operation} while exchanged with the module: swap back first")
