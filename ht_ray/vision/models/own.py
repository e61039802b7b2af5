"""Networks of a user's own, of timm and of torchvision, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ht_ray._checks import did_you_mean, refused
from ht_ray._parts import is_path_of_part, load_function, own_code
from ht_ray.errors import SettingError
from ht_ray.mechanisms.modes import evaluation_mode
from ht_ray.mechanisms.weights.fresh import find_head
from ht_ray.mechanisms.weights.rng import isolated_rng

__all__ = ["check_network", "is_own_model", "make_own_network"]


def is_own_model(name: str) -> bool:
    """Whether the name is that of a network of one's own, of timm or of torchvision."""
    return is_path_of_part(name) or name.partition(":")[0] in ("timm", "torchvision")


def _refused(name: str, reason: str, **values: Any) -> SettingError:
    return refused("ModelConfig.name", name, reason, **values)


def _timm(name: str) -> Callable[..., Any]:
    try:
        import timm
    except ImportError as error:
        raise _refused(f"timm:{name}", ": timm is not installed; pip install 'ht-ray[timm]'.") from error
    known = timm.list_models()
    if name not in known:
        raise _refused(f"timm:{name}", ": timm has no such network.{near}", near=did_you_mean(name, known))
    return lambda shape, num_classes: timm.create_model(name, num_classes=num_classes, in_chans=shape[0])


def _torchvision(name: str) -> Callable[..., Any]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        hint = did_you_mean(name, known)
        raise _refused(f"torchvision:{name}", ": torchvision has no such network for images.{near}", near=hint)
    return lambda shape, num_classes: models.get_model(name, weights=None, num_classes=num_classes)


def make_own_network(name: str, head: str | None, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a network from torch's global generator; its head is named in its attribute ``head_name``.

    Raises
    ------
    SettingError
        If there is no such network, what is called returns none, or it has no such head.
    """
    library, _, own = name.partition(":")
    if library in ("timm", "torchvision"):
        factory = _timm(own) if library == "timm" else _torchvision(own)
    else:
        given: dict[str, Any] = {"shape": shape, "num_classes": num_classes}
        factory = load_function("ModelConfig", "name", name, "shape and num_classes", **given)
    with own_code("ModelConfig.name", name, ": for samples of shape {shape}, it raised {text}.", shape=shape):
        network = factory(shape=shape, num_classes=num_classes)
    if not isinstance(network, nn.Module):
        raise _refused(name, ": it returned {kind}; accepted is a torch.nn.Module.", kind=type(network).__name__)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise _refused(name, ": the network has no parameter to train.")
    if (found := _head_of(network, head, num_classes)) is not None:
        network.head_name = found  # type: ignore[assignment]
    return network


def _head_of(network: nn.Module, head: str | None, num_classes: int) -> str | None:
    try:
        return find_head(network, head)
    except ValueError as error:
        if head is not None:
            raise refused("ModelConfig.head", head, ": {text}", text=str(error).partition(": ")[2]) from error
    last = [
        name for name, part in network.named_modules() if name and any(True for _ in part.parameters(recurse=False))
    ]
    found = network.get_submodule(last[-1]) if last else None
    # Methods that need a head refuse a network for which none is found.
    return last[-1] if isinstance(found, nn.Linear) and found.out_features == num_classes else None


def check_network(name: str, network: nn.Module, shape: tuple[int, ...], num_classes: int) -> None:
    """Refuse a network that does not map samples of this shape to logits.

    It computes two samples of zeros, in evaluation mode, and is as before afterwards.

    Raises
    ------
    SettingError
        If it cannot, or returns something else.
    """
    why = ": it cannot compute samples of shape {shape}: {text}."
    with (
        own_code("ModelConfig.name", name, why, shape=shape),
        evaluation_mode(network),
        torch.no_grad(),
        isolated_rng(0),
    ):
        logits = network(torch.zeros(2, *shape))
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (2, num_classes):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        why = ": of 2 samples it makes {got}; accepted are logits (2, {classes}), one for each class."
        raise _refused(name, why, got=got, classes=num_classes)
    if not logits.is_floating_point():
        raise _refused(name, ": its logits are {kind}; accepted are floats.", kind=str(logits.dtype))
