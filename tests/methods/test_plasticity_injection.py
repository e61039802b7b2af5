import copy
import io
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ht_ray.errors import SettingError, SettingWarning
from ht_ray.mechanisms.weights.fresh import find_head
from ht_ray.mechanisms.weights.rng import isolated_rng
from ht_ray.methods.head_reset import HeadReset
from ht_ray.methods.plasticity_injection import InjectedHead, PlasticityInjection
from ht_ray.methods.shrink_perturb import ShrinkPerturb
from ht_ray.methods.tortoise import Tortoise


def net(seed: int = 0, head: nn.Module | None = None) -> nn.Sequential:
    with isolated_rng(seed):
        # No bias before BatchNorm: its gradient is rounding noise, which Adam blows up.
        backbone = nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU())
        head = head or nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
        return nn.Sequential(OrderedDict(backbone=backbone, head=head))


def batch(index: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(100 + index)
    return torch.randn(16, 6, generator=draw), torch.randint(3, (16,), generator=draw)


def adamw(module: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    tortoise: Tortoise | None = None,
    *,
    steps: int = 3,
    start: int = 0,
) -> None:
    module.train()
    for index in range(start, start + steps):
        images, labels = batch(index)
        optimizer.zero_grad()
        F.cross_entropy(module(images), labels).backward()
        optimizer.step()
        if tortoise is not None:
            tortoise.step(optimizer)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def outputs(module: nn.Module, *, training: bool) -> Tensor:
    # On a copy: BatchNorm of the backbone moves its statistics in training mode.
    with torch.no_grad():
        return copy.deepcopy(module).train(training)(batch(50)[0])


# At the injection


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("times", [1, 2, None])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**40), steps=st.integers(0, 3))
def test_predictions_and_the_number_of_trainable_parameters_stay(
    times: int | None, training: bool, seed: int, steps: int
) -> None:
    module = net()
    method = PlasticityInjection(module, times=times, seed=seed)
    optimizer = adamw(module)
    count = sum(p.numel() for p in module.parameters() if p.requires_grad)
    for phase in range(3):
        train(module, optimizer, steps=steps, start=10 * phase)
        before = outputs(module, training=training)
        method.apply(optimizer=optimizer)
        assert torch.equal(outputs(module, training=training), before)
        assert sum(p.numel() for p in module.parameters() if p.requires_grad) == count
    assert method.applications == (times or 3)


def test_head_is_frozen_plus_new_minus_the_new_ones_first_values() -> None:
    module = net()
    old = copy.deepcopy(module.head)
    PlasticityInjection(module).apply()
    new = copy.deepcopy(module.head.grown)
    assert all(not torch.equal(a, b) for a, b in zip(new.parameters(), old.parameters(), strict=True))
    train(module, adamw(module))
    module.eval()
    features = module.backbone(batch()[0])
    wanted = old(features) + module.head.grown(features) - new(features)
    torch.testing.assert_close(module.head(features), wanted)
    assert not torch.equal(module.head(features), old(features))
    assert_same(state_of(module.head.frozen), state_of(old))
    assert_same(state_of(module.head.offset), state_of(new))


def test_new_heads_come_from_the_layers_distribution_and_the_seed() -> None:
    def drawn(seed: int, times: int = 1) -> Tensor:
        module = nn.Sequential(OrderedDict(body=nn.Linear(2, 400), head=nn.Linear(400, 100)))
        with torch.no_grad():
            module.head.weight.fill_(7.0)  # what the new head must not depend on
        method = PlasticityInjection(module, times=None, seed=seed)
        for _ in range(times):
            method.apply()
        return module.head.grown.weight.detach()

    weight = drawn(0)
    assert weight.abs().max() <= 400**-0.5
    assert weight.std().item() == pytest.approx(400**-0.5 / 3**0.5, rel=0.02)
    assert torch.equal(weight, drawn(0))
    assert not torch.equal(weight, drawn(1))
    assert not torch.equal(weight, drawn(0, times=2))


def test_global_generator_is_neither_read_nor_moved() -> None:
    states = []
    for seed in (1, 2):
        module = net()
        with isolated_rng(seed):
            before = torch.get_rng_state()
            PlasticityInjection(module).apply()
            assert torch.equal(torch.get_rng_state(), before)
        states.append(state_of(module))
    assert_same(*states)


@pytest.mark.parametrize("training", [False, True])
def test_frozen_parts_compute_in_evaluation_mode_and_the_new_one_in_the_networks(training: bool) -> None:
    module = net(head=nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)))
    train(module, adamw(module))
    module.train(training)
    before = outputs(module, training=False)
    method = PlasticityInjection(module, times=None)
    for _ in range(2):
        method.apply()
        assert torch.equal(outputs(module, training=False), before)
    for mode in (training, not training, True):
        module.train(mode)
        assert {part.training for part in module.head.grown.modules()} == {mode}
        for part in (module.head.frozen, module.head.offset):
            assert not any(child.training for child in part.modules())
    frozen = {name: t for name, t in state_of(module).items() if "frozen" in name or "offset" in name}
    train(module, adamw(module))
    assert_same({name: module.state_dict()[name] for name in frozen}, frozen)
    assert module.head.grown[1].num_batches_tracked == 3  # from 0: its statistics are new, too


def test_what_was_frozen_in_the_head_and_its_masks_stay_in_all_parts() -> None:
    head = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    head[0].requires_grad_(False)
    head.register_buffer("known", torch.tensor([1, 0, 1]))
    module = net(head=head)
    old = copy.deepcopy(head)
    PlasticityInjection(module).apply()
    for part in (module.head.frozen, module.head.grown, module.head.offset):
        assert torch.equal(part[0].weight, old[0].weight)
        assert torch.equal(part.known, old.known)
    assert not module.head.grown[0].weight.requires_grad
    assert not torch.equal(module.head.grown[1].weight, old[1].weight)


def test_heads_of_any_name_are_replaced_where_they_are() -> None:
    module = nn.ModuleDict({"body": nn.Linear(2, 2), "tail": nn.Sequential(nn.ReLU(), nn.Linear(2, 3))})
    old = module["tail"][1]
    PlasticityInjection(module, head=old).apply()
    injected = module.get_submodule("tail.1")
    assert isinstance(injected, InjectedHead) and injected.frozen is old
    assert module["tail"](torch.zeros(4, 2)).shape == (4, 3)


def test_a_factory_draws_heads_that_cannot_reset_themselves() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(5))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale

    def make() -> nn.Module:
        return nn.Sequential(OrderedDict(backbone=nn.Linear(6, 5), head=Scale()))

    with pytest.raises(SettingError, match=r"PlasticityInjection: no reset_parameters\(\) initialises \['scale'\]"):
        PlasticityInjection(make())
    module = make()
    method = PlasticityInjection(module, times=None, factory=make)
    before = outputs(module, training=True)
    for _ in range(2):
        method.apply()
    scales = [module.head.frozen.frozen.scale, module.head.frozen.grown.scale, module.head.grown.scale]
    assert len(torch.stack(scales).unique()) == 15
    assert torch.equal(outputs(module, training=True), before)


# The optimiser


def test_new_parameters_take_the_old_ones_places_in_their_groups() -> None:
    module = net()
    old = list(module.head.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [old[0], *module.backbone.parameters()], "lr": 0.1, "weight_decay": 0.0},
            {"params": [old[3], old[2]], "lr": 0.2, "initial_lr": 0.4},
        ]
    )  # old[1] is not optimised
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    train(module, optimizer)
    settings_before = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    kept = {id(p): copy.deepcopy(optimizer.state[p]) for p in module.backbone.parameters()}
    PlasticityInjection(module).apply(optimizer=optimizer)
    new = list(module.head.grown.parameters())
    wanted = [[new[0], *module.backbone.parameters()], [new[3], new[2]]]
    assert [list(map(id, group["params"])) for group in optimizer.param_groups] == [list(map(id, w)) for w in wanted]
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == settings_before
    assert {id(p) for p in optimizer.state} == kept.keys()
    for parameter in module.backbone.parameters():
        assert_same(optimizer.state[parameter], kept[id(parameter)])
    before = state_of(module)
    train(module, optimizer)
    scheduler.step()
    changed = {name for name, tensor in state_of(module).items() if not torch.equal(tensor, before[name])}
    assert {name for name in changed if name.startswith("head")} == {
        f"head.grown.{n}" for n in ("0.weight", "2.weight", "2.bias")
    }


def test_training_goes_on_as_by_hand() -> None:
    module = net()
    optimizer = adamw(module)
    train(module, optimizer)
    twin = copy.deepcopy(module)
    PlasticityInjection(module).apply(optimizer=optimizer)

    old, new = twin.head, copy.deepcopy(module.head.grown)
    first = copy.deepcopy(new)
    by_hand = torch.optim.AdamW([*twin.backbone.parameters(), *new.parameters()], lr=0.05, weight_decay=0.1)
    for theirs, ours in zip(module.backbone.parameters(), twin.backbone.parameters(), strict=True):
        by_hand.state[ours] = copy.deepcopy(optimizer.state[theirs])
    for index in range(4):
        images, labels = batch(20 + index)
        features = twin.backbone(images)
        loss = F.cross_entropy(old(features) + new(features) - first(features), labels)
        by_hand.zero_grad()
        loss.backward()
        by_hand.step()
    train(module, optimizer, steps=4, start=20)
    torch.testing.assert_close(state_of(module.head.grown), state_of(new), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state_of(module.backbone), state_of(twin.backbone), rtol=1e-4, atol=1e-5)


def test_gradients_of_what_is_frozen_are_dropped() -> None:
    module = net()
    F.cross_entropy(module(batch()[0]), batch()[1]).backward()
    PlasticityInjection(module).apply()
    assert all(p.grad is None for p in module.head.parameters())
    F.cross_entropy(module(batch()[0]), batch()[1]).backward()
    assert {name for name, p in module.head.named_parameters() if p.grad is not None} == {
        f"grown.{name}" for name, _ in module.head.grown.named_parameters()
    }


# The tortoise


@pytest.mark.parametrize("times", [1, None])
def test_tortoise_keeps_its_average_and_its_predictions(times: int | None) -> None:
    module = net()
    tortoise, method = Tortoise(module, momentum=0.8), PlasticityInjection(module, times=times)
    optimizer = adamw(module)

    def predictions() -> Tensor:
        with tortoise.predict():
            return outputs(module, training=False)

    for phase in range(3):
        train(module, optimizer, tortoise, start=10 * phase)
        before, average = predictions(), {n: t.clone() for n, t in tortoise.weights.tensors.items()}
        assert not torch.equal(before, outputs(module, training=False))
        method.apply(tortoise, optimizer)
        assert torch.equal(predictions(), before)
        if phase == 0:
            for name, value in average.items():
                assert torch.equal(tortoise.weights[name.replace("head.", "head.frozen.")], value)
            for name, value in module.head.grown.named_parameters():
                assert torch.equal(tortoise.weights[f"head.grown.{name}"], value)
    train(module, optimizer, tortoise, start=30)
    assert set(tortoise.weights) == set(module.state_dict())
    tortoise.reset(optimizer)
    assert torch.equal(outputs(module, training=False), predictions())


def test_without_the_tortoise_it_takes_the_hares_old_head() -> None:
    module = net()
    tortoise, optimizer = Tortoise(module, momentum=0.8), adamw(module)
    train(module, optimizer, tortoise)
    PlasticityInjection(module).apply(None, optimizer)
    tortoise.before_phase()
    tortoise.grown()
    for name, value in module.head.state_dict().items():
        assert torch.equal(tortoise.weights[f"head.{name}"], value)


def test_injecting_while_the_tortoise_predicts_is_refused() -> None:
    module = net()
    tortoise = Tortoise(module)
    with tortoise.predict(), pytest.raises(RuntimeError, match="stop predicting first"):
        PlasticityInjection(module).apply(tortoise)


# State


@pytest.mark.parametrize("times", [1, 2, None])
def test_a_resumed_run_goes_on_bit_for_bit(times: int | None) -> None:
    module = net()
    tortoise = Tortoise(module, momentum=0.9, reset_interval=4, reset_unit="steps")
    method = PlasticityInjection(module, times=times, seed=3)
    optimizer = adamw(module)
    for phase in range(2):
        train(module, optimizer, tortoise, start=10 * phase)
        method.apply(tortoise, optimizer)
    train(module, optimizer, tortoise, start=20)
    file = io.BytesIO()
    parts = {"module": module, "optimizer": optimizer, "tortoise": tortoise, "method": method}
    torch.save({name: part.state_dict() for name, part in parts.items()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    again = net(seed=9)
    slow = Tortoise(again, momentum=0.9, reset_interval=4, reset_unit="steps")
    same = PlasticityInjection(again, times=times, seed=3)
    same.rebuild(state["method"])
    optimizer_again = adamw(again)
    again.load_state_dict(state["module"])
    optimizer_again.load_state_dict(state["optimizer"])
    slow.load_state_dict(state["tortoise"])
    same.load_state_dict(state["method"])

    for mine, its, its_tortoise, its_method in (
        (module, optimizer, tortoise, method),
        (again, optimizer_again, slow, same),
    ):
        train(mine, its, its_tortoise, start=30)
        its_method.apply(its_tortoise, its)
        train(mine, its, its_tortoise, start=40)
    assert_same(state_of(again), state_of(module))
    assert_same(dict(slow.weights.tensors), dict(tortoise.weights.tensors))
    assert same.applications == method.applications == (times or 3)
    assert [n for n, p in again.named_parameters() if p.requires_grad] == [
        n for n, p in module.named_parameters() if p.requires_grad
    ]


def test_a_state_needs_the_structure_that_goes_with_it() -> None:
    module = net()
    method = PlasticityInjection(module)
    none = method.state_dict()
    method.apply()
    fresh = PlasticityInjection(net())
    with pytest.raises(ValueError, match="the network has had 0 injections, the state 1: call rebuild first"):
        fresh.load_state_dict(method.state_dict())
    assert fresh.applications == 0
    with pytest.raises(ValueError, match="the network has had 1 injections, the state 0: rebuild a newly made network"):
        method.rebuild(none)
    method.rebuild(method.state_dict())
    assert method.applications == 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_duplicates_of_the_network_are_whole(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    module = net()
    PlasticityInjection(module).apply()
    twin = duplicate(module)
    train(module, adamw(module))
    train(twin, adamw(twin))
    assert_same(state_of(twin), state_of(module))


# Together with other methods


def test_other_reinitialisations_leave_the_frozen_parts_alone() -> None:
    module = net()
    tortoise = Tortoise(module, momentum=0.5)
    shrink, reset, method = ShrinkPerturb(module, ratio=0.8), HeadReset(module), PlasticityInjection(module)
    optimizer = adamw(module)
    train(module, optimizer, tortoise)
    method.apply(tortoise, optimizer)
    assert find_head(module) == "head"
    for other in (shrink, reset):
        other.before_phase()
        other.grown()
    first = state_of(module)
    train(module, optimizer, tortoise, start=10)
    trained = state_of(module)
    shrink.apply(tortoise, optimizer)
    grown = "head.grown.0.weight"
    torch.testing.assert_close(module.state_dict()[grown], 0.2 * trained[grown] + 0.8 * first[grown])
    train(module, optimizer, tortoise, start=20)
    reset.apply(tortoise, optimizer)
    for name, value in state_of(module).items():
        if name.startswith("head."):
            assert torch.equal(value, first[name]), name
    assert torch.equal(tortoise.weights[grown], first[grown])


def test_begin_phase_keeps_frozen_what_was_replaced() -> None:
    module = net()
    method = PlasticityInjection(module)
    method.before_phase()
    method.grown()
    assert all(p.requires_grad for p in module.parameters())
    method.apply()
    module.head.frozen[2] = nn.Linear(4, 3)
    method.before_phase()
    method.grown()
    assert not any(p.requires_grad for p in module.head.frozen.parameters())
    assert all(p.requires_grad for p in module.head.grown.parameters())


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"times": 0}, r"PlasticityInjection: times = 0: accepted is a whole number with 1 <= times"),
        ({"seed": 0.5}, r"PlasticityInjection: seed = 0\.5"),
        ({"head": "haed"}, r"PlasticityInjection: head = 'haed'.*Did you mean 'head'\?"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        PlasticityInjection(net(), **settings)


def test_a_head_that_is_tied_to_the_rest_is_refused() -> None:
    module = nn.Sequential(OrderedDict(backbone=nn.Linear(3, 3), head=nn.Linear(3, 3)))
    method = PlasticityInjection(module)
    module.head.weight = module.backbone.weight
    with pytest.raises(SettingError, match=r"head = 'head' shares \['backbone\.weight'\]"):
        PlasticityInjection(module)
    with pytest.raises(ValueError, match="shares"):
        method.apply()
    assert isinstance(module.head, nn.Linear)


def test_a_linear_head_learns_as_without_and_that_is_told() -> None:
    plain = net(head=nn.Linear(5, 3)).double()
    injected = copy.deepcopy(plain)
    with pytest.warns(SettingWarning, match="is one linear layer"):
        method = PlasticityInjection(injected)
    method.apply()
    for module in (plain, injected):
        trained = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.05, weight_decay=0.0)
        module.train()
        for index in range(3):
            images, labels = batch(index)
            optimizer.zero_grad()
            F.cross_entropy(module(images.double()), labels).backward()
            optimizer.step()
    images = batch(9)[0].double()
    torch.testing.assert_close(injected.eval()(images), plain.eval()(images), rtol=1e-6, atol=1e-6)


def test_a_head_with_hidden_layers_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PlasticityInjection(net())
