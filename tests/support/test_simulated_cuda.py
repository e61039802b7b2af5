"""The simulated device computes what the CPU computes, and waits where a card does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from simulated_cuda import simulated_cuda
from small_runs import HARE_TORTOISE, assert_close_rows, make_data, make_net, train
from torch import Tensor, nn

from ht_ray.methods import Tortoise

pytestmark = pytest.mark.filterwarnings("ignore::ht_ray.errors.SettingWarning")


def on_device(*shape: int) -> Tensor:
    return torch.ones(shape, device="cuda")


WAITS: dict[str, Callable[[], object]] = {
    "a value": lambda: on_device().item(),
    "a number": lambda: float(on_device()),
    "a truth": lambda: bool(on_device() > 0),
    "a list": lambda: on_device(3).tolist(),
    "a comparison": lambda: torch.equal(on_device(3), on_device(3)),
    "a copy to the host": lambda: on_device(3).cpu(),
    "a copy to the host, by name": lambda: on_device(3).to("cpu", non_blocking=True),
    "positions": lambda: on_device(3).nonzero(),
    "a mask as an index": lambda: on_device(3)[on_device(3) > 0],
    "what a mask selects": lambda: on_device(3).masked_select(on_device(3) > 0),
    "classes of unknown number": lambda: nn.functional.one_hot(on_device(3).long()),
    "pinned memory, not in the background": lambda: torch.ones(3).pin_memory().to("cuda"),
}
UNPINNED: dict[str, Callable[[], object]] = {
    "a copy to the device": lambda: torch.ones(3).to("cuda"),
    "a copy in the background": lambda: torch.ones(3).to("cuda", non_blocking=True),
    "a copy into a tensor": lambda: on_device(3).copy_(torch.ones(3)),
    "data of the host": lambda: torch.tensor([1.0, 2.0], device="cuda"),
    "an index on the host": lambda: on_device(3)[torch.tensor([0, 2])],
    "a number at positions of the host": lambda: on_device(3).__setitem__(torch.tensor([0, 2]), 2.0),
    "a tensor of the host at one place": lambda: on_device(3).__setitem__(0, torch.tensor(2.0)),
    "a tensor of the host at positions": lambda: on_device(3).__setitem__(on_device(2).long(), torch.tensor(2.0)),
    "where with a tensor of the host": lambda: torch.where(on_device(3) > 0, on_device(3), torch.tensor(0.0)),
}
WITHOUT_WAITING: dict[str, Callable[[], object]] = {
    "pinned memory in the background": lambda: torch.ones(3).pin_memory().to("cuda", non_blocking=True),
    "a number in where": lambda: torch.where(on_device(3) > 0, on_device(3), 0.0),
    "a number in an assignment": lambda: on_device(3).__setitem__(0, 2.0),
    "a number at positions": lambda: on_device(3).__setitem__(on_device(2).long(), 2.0),
    "a scalar tensor of the host in a sum": lambda: on_device(3) + torch.tensor(1.0),
    "a move to where it is": lambda: on_device(3).to("cuda"),
    "rows by position": lambda: on_device(3).index_select(0, on_device(2).long()),
    "classes of known number": lambda: nn.functional.one_hot(on_device(3).long(), 5),
}


@pytest.mark.parametrize("what", WAITS)
def test_what_the_host_reads_waits(what: str) -> None:
    with simulated_cuda() as counts:
        WAITS[what]()
    assert counts.waits.total() == 1
    assert not counts.unpinned


@pytest.mark.parametrize("what", UNPINNED)
def test_what_is_copied_from_pageable_memory_waits(what: str) -> None:
    with simulated_cuda() as counts:
        UNPINNED[what]()
    assert counts.unpinned.total() == 1
    assert counts.waits == counts.unpinned


@pytest.mark.parametrize("what", WITHOUT_WAITING)
def test_what_is_launched_does_not_wait(what: str) -> None:
    with simulated_cuda() as counts:
        WITHOUT_WAITING[what]()
    assert not counts.waits


def test_tensors_say_where_they_are_and_devices_do_not_mix() -> None:
    with simulated_cuda():
        tensor = torch.arange(3.0).to("cuda")
        assert (str(tensor.device), tensor.is_cuda) == ("cuda:0", True)
        assert (tensor * 2).cpu().tolist() == [0.0, 2.0, 4.0]
        with pytest.raises(RuntimeError, match="same device"):
            tensor + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            tensor.numpy()


def test_a_module_moves_there_and_back_as_the_same_parameters() -> None:
    layer = nn.Linear(3, 2)
    weight, before = layer.weight, layer.weight.detach().clone()
    with simulated_cuda():
        layer.to("cuda")
        assert layer.weight is weight
        assert layer.weight.is_cuda
        layer(on_device(4, 3)).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight.grad.is_cuda
        layer.to("cpu")
    assert torch.equal(layer.weight, before)


def test_outside_of_the_block_nothing_is_left_of_it() -> None:
    replaced = torch.Generator, torch.autocast
    with simulated_cuda():
        assert torch.Generator is not replaced[0]
    assert (torch.Generator, torch.autocast) == replaced
    assert not torch.ones(3).to("cpu").is_cuda


def learned_weights(network: str, device: str) -> list[Tensor]:
    net = make_net(network).to(device).train()
    inputs = torch.rand(8, *make_data(network, count=1).shape, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(8).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True)
    tortoise = Tortoise(net, momentum=0.5, reset_interval=2, reset_unit="steps")
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        tortoise.step(optimizer)
    return [tensor.detach().cpu() for tensor in (*net.parameters(), *net.buffers())]


@pytest.mark.parametrize("network", ["mlp", "resnet18", "vgg16", "vit_tiny"])
def test_a_network_learns_what_it_learns_on_the_cpu_to_the_bit(network: str) -> None:
    with simulated_cuda() as counts:
        weights = learned_weights(network, "cuda")
    expected = learned_weights(network, "cpu")
    assert all(torch.equal(one, two) for one, two in zip(weights, expected, strict=True))
    assert counts.kernels > 50


def test_a_run_has_the_losses_of_the_run_on_the_cpu() -> None:
    with simulated_cuda():
        rows = train("cuda", HARE_TORTOISE, count=64, plain_steps=True)[2]
    assert_close_rows(rows, train("cpu", HARE_TORTOISE, count=64)[2], rel=1e-4, accuracy=0.02)
