"""A CUDA device that is pretended on the CPU: it computes like the CPU, and counts what would keep the host waiting.

Inside ``with simulated_cuda() as counts:`` tensors can be put on ``"cuda"``. They say that they are there, and compute
on the CPU, so results are the CPU's to the bit. Counted are the kernels that would be launched, the copies from memory
that is not pinned, and the waits: every place where the host reads what the device computed, or copies to it without
asking for a copy in the background from pinned memory. Tensors of several devices in one operation are an error, as
they are with CUDA.

What waits, as measured on a card with ``torch.cuda.set_sync_debug_mode`` (torch 2.11) and as torch's sources say:

- ``.to("cuda")`` of memory that is not pinned, or without ``non_blocking``; ``copy_`` between devices; ``.cpu()``;
- ``.item()``, ``.tolist()``, ``bool(tensor)``, ``torch.equal``, and with it everything that asks for a value;
- what has a result of a size that the values decide: ``nonzero``, ``masked_select``, ``unique``, masks as indices;
- indices on the CPU, and tensors ``()`` on the CPU in ``torch.where`` and in assignments: they are copied first.

A *number* in ``torch.where`` or in an assignment does not wait: it is written by a kernel, not copied.

Not simulated: streams, graphs, events, memory, random numbers of the device (a generator on it draws what one on the
CPU does), TF32 and kernels that are not deterministic.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import optimizer
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["Counts", "simulated_cuda"]

CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")
aten = torch.ops.aten

#: Operations whose results have a size that depends on values, or are values.
READING = {
    "aten::_local_scalar_dense",
    "aten::_unique2",
    "aten::bincount",
    "aten::equal",
    "aten::is_nonzero",
    "aten::item",
    "aten::masked_select",
    "aten::nonzero",
    "aten::nonzero_numpy",
    "aten::repeat_interleave",
    "aten::unique_dim",
}
#: Operations that launch nothing: views in all but their schema, and allocations.
LAUNCHING_NOTHING = {
    "aten::_fused_sdp_choice",
    "aten::_reshape_alias",
    "aten::_unsafe_view",
    "aten::detach",
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::is_pinned",
    "aten::is_same_size",
    "aten::lift_fresh",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::resize_",
    "aten::set_",
}
INDEXING = {"aten::_index_put_impl_", "aten::_unsafe_index", "aten::index", "aten::index_put", "aten::index_put_"}
#: Operations that launch more than one kernel.
SEVERAL_KERNELS = {
    "aten::convolution_backward": 2,
    "aten::native_group_norm_backward": 2,
    "aten::native_layer_norm_backward": 2,
}
#: How many tensors one kernel of a ``_foreach_`` operation takes, about.
TENSORS_PER_KERNEL = 110


@dataclass
class Counts:
    """What the device and its host did: waits and copies by kind and line of ours, kernels in all and by operation."""

    waits: Counter[str] = field(default_factory=Counter)
    unpinned: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)

    @property
    def kernels(self) -> int:
        """How many kernels were launched, at least: libraries may take several for one operation."""
        return self.operations.total()

    def wait(self, kind: str) -> None:
        """Count a wait."""
        self.waits[f"{kind} at {_our_line()}"] += 1

    def copy_unpinned(self, kind: str) -> None:
        """Count a copy from pageable memory, which waits."""
        self.unpinned[f"{kind} at {_our_line()}"] += 1
        self.wait(kind)

    def launch(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Count the kernels of an operation."""
        kernels = SEVERAL_KERNELS.get(name, 1)
        if name.startswith(("aten::_foreach", "aten::_fused")) and isinstance(arguments[0], list | tuple):
            kernels = -(-len(arguments[0]) // TENSORS_PER_KERNEL)
        self.operations[name] += kernels


def _our_line() -> str:
    """Return file and line of the package, or else of the first caller that is neither torch's nor of this file."""
    other = "?"
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if "/ht_ray/" in name:
            return f"{name.rpartition('/ht_ray/')[2]}:{frame.f_lineno}"
        if other == "?" and name != __file__ and "/torch/" not in name and "/contextlib" not in name:
            other = f"{name.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return other


class DeviceTensor(Tensor):
    """A tensor on the simulated device; `held` is what it computes with.

    For torch's C++ it is on the CPU, as autograd would otherwise look for a driver; for Python it is on the device.
    """

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> DeviceTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=CPU,
            requires_grad=False,
        )
        tensor.held = held
        return tensor

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert _Operations.current is not None, "a tensor of the simulated device is used after it is gone"
        return _Operations.current.compute(operation, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            with torch.no_grad():
                copied = DeviceTensor(self.held.clone()).requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                copied._is_param = True  # type: ignore[attr-defined]
            memo[id(self)] = copied
        return memo[id(self)]

    def __repr__(self, **settings: Any) -> str:
        return f"DeviceTensor({self.held!r})"


def _held(value: Any) -> Any:
    return value.held if isinstance(value, DeviceTensor) else value


def _on_device(value: Any) -> Any:
    return DeviceTensor(value) if isinstance(value, Tensor) and not isinstance(value, DeviceTensor) else value


def _is_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _is_on_cpu(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, DeviceTensor)


class _Operations(TorchDispatchMode):
    """Computes what is called on tensors of the device, and counts."""

    current: _Operations | None = None

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts
        # With this key, torch does not start CUDA to make a tensor on it.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.compute(operation, args, kwargs or {})

    def compute(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute an operation where its tensors are, and return its results there."""
        name = operation._schema.name
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        if not there and not _is_device(kwargs.get("device")):
            return operation(*args, **kwargs)
        if name == "prim::device":
            return CUDA
        if name == "aten::_fused_sdp_choice":
            return 0  # the plain formula; which kernel is taken depends on the card
        if name == "aten::copy_":
            return self._copy(*args, **kwargs)
        arrives = name == "aten::_to_copy" and not there
        if arrives:
            self._copy_to_device(args[0], background=bool(kwargs.get("non_blocking")))
        else:
            self._check_devices(name, args, [tensor for tensor in tensors if _is_on_cpu(tensor)])
        if name in READING:
            self.counts.wait(name)
        held = {key: _held(value) for key, value in kwargs.items() if key != "pin_memory"}
        if "device" in held:
            held["device"] = CPU
        result = operation(*tree_map(_held, args), **tree_map(_held, held))
        if not (arrives or _is_view(operation) or name in LAUNCHING_NOTHING):
            self.counts.launch(name, args)
        changed = _changed_in_place(operation, args, kwargs)
        if changed:
            return changed[0] if len(operation._schema.returns) == 1 else tuple(changed)
        return tree_map(_on_device, result)

    def _copy(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if isinstance(target, DeviceTensor) and isinstance(source, DeviceTensor):
            self.counts.launch("aten::copy_", ())
        elif isinstance(target, DeviceTensor):
            self._copy_to_device(source, background=non_blocking)
        else:
            self.counts.wait("copy from the device")
        _held(target).copy_(_held(source))
        return target

    def _copy_to_device(self, source: Tensor, *, background: bool) -> None:
        if not getattr(source, "is_pinned_here", False):
            self.counts.copy_unpinned("copy to the device")
        elif not background:
            self.counts.wait("copy to the device")

    def _check_devices(self, name: str, args: tuple[Any, ...], elsewhere: list[Tensor]) -> None:
        """Count what is copied first, and refuse what CUDA refuses; scalar tensors on the CPU are its arguments."""
        if name in INDEXING:
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    self.counts.wait(f"{name} with a mask")
                if _is_on_cpu(index) and isinstance(args[0], DeviceTensor):
                    self.counts.copy_unpinned(f"{name} with indices on the CPU")
            elsewhere = [tensor for tensor in elsewhere if all(tensor is not index for index in args[1])]
        if name.startswith("aten::_foreach_copy"):
            for target, source in zip(args[0], args[1], strict=True):
                if _is_on_cpu(target) != _is_on_cpu(source):
                    self.counts.copy_unpinned(name)
            return
        if any(tensor.dim() > 0 for tensor in elsewhere):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu")


def _is_view(operation: Any) -> bool:
    aliases = [returned.alias_info for returned in operation._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _changed_in_place(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments that the operation writes to and returns: they stay the objects that they are."""
    schema = operation._schema
    if not any(returned.alias_info is not None and returned.alias_info.is_write for returned in schema.returns):
        return []
    written = []
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = kwargs.get(argument.name, args[position] if position < len(args) else None)
            written += [value] if value is not None else []
    return written[: len(schema.returns)]


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: DeviceTensor, dtype: torch.dtype | None) -> Tensor:
        assert _Operations.current is not None
        _Operations.current.counts.wait("copy from the device")
        return tensor.held.to(dtype or tensor.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return DeviceTensor(gradients[0]), None


class _Calls(TorchFunctionMode):
    """Stands in for functions that torch answers, or takes apart, before an operation is seen."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts
        self.instead: dict[Any, Callable[..., Any]] = {
            Tensor.to: self.to,
            Tensor.cpu: lambda tensor, *args, **kwargs: self.to(tensor, CPU),
            Tensor.cuda: lambda tensor, *args, **kwargs: self.to(tensor, CUDA),
            Tensor.tolist: self.tolist,
            Tensor.numpy: self.numpy,
            Tensor.__array__: self.numpy,
            Tensor.data_ptr: lambda tensor: _held(tensor).data_ptr(),
            Tensor.pin_memory: self.pin_memory,
            Tensor.__setitem__: self.setitem,
            torch.where: self.where,
            Tensor.where: lambda tensor, condition, other: self.where(condition, tensor, other),
            torch.tensor: self.tensor,
            functional.one_hot: self.one_hot,
        }

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.instead.get(function, function)(*args, **(kwargs or {}))

    def to(self, tensor: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        if not isinstance(tensor, DeviceTensor):
            return tensor.to(*args, copy=copy, **kwargs)
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            return _ToHost.apply(tensor, dtype)
        settings = {"dtype": dtype, "memory_format": memory_format}
        settings = {name: value for name, value in settings.items() if value is not None}
        same = dtype in (None, tensor.dtype) and (
            memory_format in (None, torch.preserve_format) or tensor.is_contiguous(memory_format=memory_format)
        )
        return tensor if same and not copy else aten._to_copy.default(tensor, **settings)

    def tolist(self, tensor: Tensor) -> Any:
        if isinstance(tensor, DeviceTensor):
            self.counts.wait("tolist")
        return _held(tensor).tolist()

    def numpy(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(tensor, DeviceTensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return tensor.numpy(*args, **kwargs)

    def pin_memory(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        pinned = tensor.clone()
        pinned.is_pinned_here = True  # type: ignore[attr-defined]
        return pinned

    def setitem(self, tensor: Tensor, index: Any, value: Any) -> None:
        if isinstance(tensor, DeviceTensor):
            at_positions = any(isinstance(part, Tensor) for part in tree_leaves(index))
            if at_positions and _is_on_cpu(value) and value.dim() == 0:
                self.counts.copy_unpinned("assignment of a tensor on the CPU")
            index = tree_map(self._index_on_device, index)
            if isinstance(value, bool | int | float):
                value = torch.full((), value, dtype=tensor.dtype, device=CUDA)  # as torch does for a device
        tensor[index] = value

    def _index_on_device(self, index: Any) -> Any:
        if _is_on_cpu(index):
            self.counts.copy_unpinned("assignment at indices on the CPU")
        return _on_device(index)

    def where(self, condition: Tensor, *values: Any, **kwargs: Any) -> Any:
        if not values:
            return torch.where(condition)
        if any(isinstance(value, DeviceTensor) for value in (condition, *values)):
            for value in (condition, *values):
                if _is_on_cpu(value) and value.dim() == 0:
                    self.counts.copy_unpinned("where with a tensor on the CPU")
        return torch.where(condition, *values, **kwargs)

    def tensor(self, data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        made = torch.tensor(data, **kwargs)
        return made.to(CUDA) if _is_device(device) else made

    def one_hot(self, tensor: Tensor, num_classes: int = -1) -> Tensor:
        if not isinstance(tensor, DeviceTensor):
            return functional.one_hot(tensor, num_classes)
        if num_classes < 0:
            self.counts.wait("one_hot without a number of classes")
        return DeviceTensor(functional.one_hot(tensor.held, num_classes))


def _replaced() -> Iterator[tuple[Any, str, Any]]:
    """Yield what has to be replaced for a while: owner, name, and the new value."""
    generator, autocast, group = (
        torch.Generator,
        torch.autocast,
        _foreach_utils._group_tensors_by_device_and_dtype,
    )

    class HostGenerator(generator):  # type: ignore[misc, valid-type]
        def __new__(cls, device: Any = "cpu") -> torch.Generator:
            return generator.__new__(generator, "cpu")

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        groups = group(lists, with_indices)
        on_device = {key: isinstance(lists[0][0], DeviceTensor) for key, (lists, _) in groups.items()}
        return {(CUDA if on_device[key] else key[0], key[1]): value for key, value in groups.items()}

    def autocasting(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return autocast("cpu", *args, **kwargs)

    yield torch, "Generator", HostGenerator
    yield torch, "autocast", autocasting
    for owner in (_foreach_utils, torch.nn.utils.clip_grad, optimizer):
        yield owner, "_group_tensors_by_device_and_dtype", grouped
    supported = [*_foreach_utils._foreach_supported_types, DeviceTensor]
    yield _foreach_utils, "_foreach_supported_types", supported


@contextmanager
def simulated_cuda() -> Iterator[Counts]:
    """Let ``"cuda"`` be a device that computes on the CPU inside a block; yield what it counts."""
    torch._C._ensureCUDADeviceGuardSet()
    counts = Counts()
    swap = torch.__future__.get_swap_module_params_on_conversion()
    with ExitStack() as stack:
        for owner, name, value in _replaced():
            stack.enter_context(mock.patch.object(owner, name, value))
        # `Module.to` writes into its parameters' data, which cannot become that of another class.
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swap)
        _Operations.current = stack.enter_context(_Operations(counts))
        stack.callback(setattr, _Operations, "current", None)
        stack.enter_context(_Calls(counts))
        yield counts
