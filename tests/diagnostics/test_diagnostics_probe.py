"""The probe against a training loop written out, and what it tells of a network that has stopped learning."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ht_ray.diagnostics import plasticity_probe, probe_loss
from ht_ray.errors import SettingError
from ht_ray.mechanisms import derive_seed, generator


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))


def _inputs(number: int = 40) -> torch.Tensor:
    return torch.randn(number, 6, generator=torch.Generator().manual_seed(1))


def _sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def test_the_copy_is_trained_as_by_hand():
    net, inputs = _network(), _inputs()
    measured = probe_loss(net, _sgd, inputs, num_classes=4, steps=7, batch_size=16, seed=3)
    labels = torch.randint(4, (40,), generator=generator(3, "probe: labels"))
    draws = generator(3, "probe: order")
    order = torch.cat([torch.randperm(40, generator=draws) for _ in range(3)])
    twin = copy.deepcopy(net)
    optimizer = _sgd(twin.parameters())
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(3, "probe: training"))
        for index in order.split(16)[:7]:
            optimizer.zero_grad()
            cross_entropy(twin(inputs[index]), labels[index]).backward()
            optimizer.step()
    assert measured.item() == pytest.approx(cross_entropy(twin.eval()(inputs), labels).item(), rel=1e-6)


def test_a_network_without_plasticity_has_a_gap():
    net, inputs = _network(), _inputs()
    with torch.no_grad():
        net[1].bias.fill_(-100.0)  # every rectifier is dead
    probe = plasticity_probe(net, _sgd, inputs, num_classes=4, steps=60)
    assert probe.gap.item() == pytest.approx(probe.loss.item() - probe.baseline.item())
    assert probe.gap.item() > 0.2


def test_a_fresh_network_as_it_is_given_or_made():
    net, inputs, fresh = _network(), _inputs(), _network()
    settings = {"num_classes": 4, "steps": 5, "seed": 2}
    alone = probe_loss(fresh, _sgd, inputs, **settings)
    for given in (fresh, lambda: copy.deepcopy(fresh)):
        assert plasticity_probe(net, _sgd, inputs, fresh=given, **settings).baseline == alone
    drawn = plasticity_probe(net, _sgd, inputs, **settings)
    assert drawn.baseline == plasticity_probe(fresh, _sgd, inputs, **settings).baseline
    assert drawn.loss == plasticity_probe(net, _sgd, inputs, **settings).loss


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_an_optimiser_like_the_given_one(kind):
    net, inputs = _network(), _inputs()
    groups = [{"params": net[0].parameters(), "lr": 0.05}, {"params": net[4].parameters(), "weight_decay": 0.1}]
    optimizer = kind(groups, lr=0.01)
    net(inputs).sum().backward()
    optimizer.step()
    net.zero_grad()

    def by_hand(parameters):
        weights = list(parameters)
        groups = [{"params": weights[:2], "lr": 0.05}, {"params": weights[4:], "weight_decay": 0.1}]
        return kind(groups, lr=0.01)

    settings = {"num_classes": 4, "steps": 5}
    assert probe_loss(net, optimizer, inputs, **settings) == probe_loss(net, by_hand, inputs, **settings)
    expected = probe_loss(net, optimizer, inputs, **settings)
    torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01)
    assert optimizer.param_groups[0]["lr"] != 0.05
    assert probe_loss(net, optimizer, inputs, **settings) == expected
    with pytest.raises(SettingError, match="no parameter of the network"):
        probe_loss(_network(), optimizer, inputs, **settings)


def test_given_targets_are_learned():
    net, inputs = _network(), _inputs()
    targets = (inputs[:, 0] > 0).long()
    easy = probe_loss(net, _sgd, inputs, num_classes=4, steps=60, targets=targets)
    assert easy < probe_loss(net, _sgd, inputs, num_classes=4, steps=60)
    with pytest.raises(SettingError, match="3 targets for 40 inputs"):
        probe_loss(net, _sgd, inputs, num_classes=4, targets=targets[:3])
    with pytest.raises(SettingError, match="Did you mean 'random_labels'"):
        probe_loss(net, _sgd, inputs, num_classes=4, targets="random_label")


def test_hooks_of_the_original_see_nothing_of_the_copy():
    net, inputs = _network(), _inputs()

    class Watcher:
        calls = 0

        def __call__(self, *_: object) -> None:
            self.calls += 1

        def __deepcopy__(self, memo: object) -> None:
            raise AssertionError("a hook was copied")

    watcher = Watcher()
    net[0].register_forward_hook(watcher)
    net.register_full_backward_hook(watcher)
    probe_loss(net, _sgd, inputs, num_classes=4, steps=2)
    assert watcher.calls == 0
