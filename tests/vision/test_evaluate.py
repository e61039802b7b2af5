"""Evaluation measures what a direct computation measures, and leaves no trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from ht_ray.mechanisms import named_tensors
from ht_ray.vision import Normalise, evaluate, evaluating


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    for _ in range(3):  # statistics that are not those of any batch
        net(torch.randn(16, 3, 8, 8) + 1)
    return net


IMAGES = torch.randint(256, (101, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
LABELS = torch.randint(5, (101,), generator=torch.Generator().manual_seed(1))
NORMALISE = Normalise([0.5, 0.4, 0.3], [0.2, 0.3, 0.1])


@pytest.mark.parametrize("batch_size", [1, 7, 101, 1000])
@pytest.mark.parametrize("channels_last", [False, True])
def test_loss_and_accuracy_are_those_of_a_direct_computation(batch_size: int, channels_last: bool) -> None:
    net = network()
    with torch.no_grad():
        logits = copy.deepcopy(net).double().eval()(NORMALISE(IMAGES).double())
    tested = evaluate(net, IMAGES, LABELS, NORMALISE, batch_size=batch_size, channels_last=channels_last)
    assert tested.loss == pytest.approx(functional.cross_entropy(logits, LABELS).item(), rel=1e-5)
    assert tested.accuracy == (logits.argmax(1) == LABELS).double().mean().item()


def test_autocast_computes_in_its_type_and_sums_in_full_precision() -> None:
    net = network()
    seen = []
    net[5].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    full = evaluate(net, IMAGES, LABELS, NORMALISE)
    narrow = evaluate(net, IMAGES, LABELS, NORMALISE, autocast=torch.bfloat16)
    assert seen == [torch.float32, torch.bfloat16]
    assert narrow.loss == pytest.approx(full.loss, rel=0.02)
    assert narrow.loss != full.loss


def test_nothing_is_left_behind() -> None:
    net = network()
    net[1].eval()  # a part that is kept in evaluation mode while training
    net(torch.randn(4, 3, 8, 8)).sum().backward()
    modes = [part.training for part in net.modules()]
    gradients = [p.grad.clone() for p in net.parameters()]
    values = {name: tensor.detach().clone() for name, tensor in named_tensors(net)}
    state = torch.random.get_rng_state()
    first = evaluate(net, IMAGES, LABELS, NORMALISE)
    assert evaluate(net, IMAGES, LABELS, NORMALISE) == first
    assert torch.equal(state, torch.random.get_rng_state())
    assert modes == [part.training for part in net.modules()]
    assert net.training and not net[1].training
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(net.parameters(), gradients, strict=True))
    assert all(torch.equal(values[name], tensor) for name, tensor in named_tensors(net))
    assert torch.is_grad_enabled()


def test_modes_come_back_after_an_exception() -> None:
    net = network()
    net[3].eval()
    with pytest.raises(RuntimeError):
        evaluate(net, IMAGES[:, :2], LABELS, Normalise([0.5] * 2, [0.2] * 2))
    assert net.training and net[1].training and not net[3].training
    with evaluating(net):
        assert not any(part.training for part in net.modules())
        assert not torch.is_grad_enabled()
    assert net.training and not net[3].training
