"""Fresh weights, as a module has when it is built, and the head of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ht_ray._checks import did_you_mean
from ht_ray.mechanisms.weights.detached_copy import detached_copy
from ht_ray.mechanisms.weights.rng import isolated_rng
from ht_ray.mechanisms.weights.weight_copy import named_tensors

__all__ = ["HEAD_NAMES", "FreshWeights", "find_head", "fresh_weights"]

HEAD_NAMES = ("head", "classifier", "fc", "linear", "output")
"""Where `find_head` looks when no head is named, in this order."""


def _reinitialise(module: nn.Module) -> None:
    # torch has both spellings; MultiheadAttention and Transformer have the underscored one only.
    for name in ("reset_parameters", "_reset_parameters"):
        method = getattr(module, name, None)
        if callable(method):
            method()
            return


def fresh_weights(module: nn.Module, *, seed: int, factory: Callable[[], nn.Module] | None = None) -> dict[str, Tensor]:
    """Draw new initial weights for `module`, which itself is left alone.

    Each sub-module's own ``reset_parameters()`` is called on a copy, children before parents, so the weights come
    from the distribution that the layers were made with. They are drawn on the CPU and in contiguous memory, and so
    depend neither on the device nor on the module's memory format; the global generators are put back.

    Parameters
    ----------
    module
        Whose weights to draw.
    seed
        Seed of the draw.
    factory
        Builds the network again, for networks whose initialisation is not in ``reset_parameters`` methods; called with
        the global generator seeded with `seed`.

    Returns
    -------
    dict
        New CPU tensors by name, parameters and buffers.

    Raises
    ------
    ValueError
        If a trainable parameter has no initialiser (and no `factory` is given), or what `factory` makes has other
        names or shapes.
    """
    return FreshWeights(module, factory=factory).draw(seed)


class FreshWeights:
    """Draws new initial weights of one module again and again; see `fresh_weights`.

    The module is copied once, here; drawing leaves it alone and does not wait for a GPU.

    Parameters
    ----------
    module, factory
        As for `fresh_weights`.
    """

    def __init__(self, module: nn.Module, *, factory: Callable[[], nn.Module] | None = None) -> None:
        self._factory = factory
        self._wanted = {name: tensor.shape for name, tensor in named_tensors(module)}
        self._copy: nn.Module | None = None
        if factory is None:
            self._copy = detached_copy(module).cpu()
            for _, tensor in named_tensors(self._copy):
                # Initialisers fill a tensor in the order of its memory, and some raise unless it is contiguous.
                tensor.data = tensor.data.contiguous()

    def draw(self, seed: int) -> dict[str, Tensor]:
        """Return the weights of this `seed`; raises as `fresh_weights`."""
        with isolated_rng(seed):
            if self._copy is not None:
                return self._reinitialised(self._copy)
            assert self._factory is not None
            made = dict(named_tensors(self._factory()))
        if {name: tensor.shape for name, tensor in made.items()} != self._wanted:
            differing = sorted(n for n in made.keys() | self._wanted.keys() if n not in made or n not in self._wanted
                               or made[n].shape != self._wanted[n])  # fmt: skip
            raise ValueError(f"the factory makes a network that differs in {differing}")
        return {name: tensor.detach().cpu().clone() for name, tensor in made.items()}

    @staticmethod
    @torch.no_grad()
    def _reinitialised(module: nn.Module) -> dict[str, Tensor]:
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.fill_(float("nan"))  # so that what no initialiser reaches is seen
        module.apply(_reinitialise)
        missed = [name for name, p in module.named_parameters() if p.requires_grad and bool(torch.isnan(p).any())]
        if missed:
            raise ValueError(
                f"no reset_parameters() initialises {missed}: add that method to the module that owns them, "
                "or pass a factory that builds the network"
            )
        return {name: tensor.clone() for name, tensor in named_tensors(module)}


def find_head(module: nn.Module, head: str | nn.Module | None = None) -> str:
    """Return the name of the head of a network: everything after its encoder.

    Parameters
    ----------
    module
        The network.
    head
        The head's name (dotted, as in ``named_modules``), the head itself, or None for the name in the network's
        attribute ``head_name``; without one, to look for an attribute called one of `HEAD_NAMES` that has parameters.

    Raises
    ------
    ValueError
        If there is no such sub-module, or it has no parameters.

    Examples
    --------
    >>> net = nn.Sequential()
    >>> net.add_module("encoder", nn.Linear(2, 2))
    >>> net.add_module("classifier", nn.Linear(2, 2))
    >>> find_head(net)
    'classifier'
    >>> find_head(net, "clasifier")
    Traceback (most recent call last):
    ...
    ValueError: head = 'clasifier': the network has no such part; it has 'encoder', 'classifier'. \
Did you mean 'classifier'?
    """
    parts: dict[str, nn.Module] = {name: part for name, part in module.named_modules(remove_duplicate=False) if name}
    children = ", ".join(repr(name) for name, _ in module.named_children())
    if head is None and isinstance(given := getattr(module, "head_name", None), str):
        head = given
    if isinstance(head, nn.Module):
        names = [name for name, part in parts.items() if part is head]
        if not names:
            raise ValueError(f"the given head is no part of the network, which has {children}")
        head = names[0]
    elif head is None:
        found = [n for n in HEAD_NAMES if n in parts and any(True for _ in parts[n].parameters())]
        if not found:
            raise ValueError(f"no head found under {', '.join(HEAD_NAMES)}; name it: the network has {children}")
        head = found[0]
    if head not in parts:
        raise ValueError(
            f"head = {head!r}: the network has no such part; it has {children}.{did_you_mean(head, parts)}"
        )
    if not any(True for _ in parts[head].parameters()):
        raise ValueError(f"head = {head!r} has no parameters")
    return head
