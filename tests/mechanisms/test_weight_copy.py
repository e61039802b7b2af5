"""A weight copy holds what it was told to hold, exactly, whatever the module consists of and turns into."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ht_ray.mechanisms import WeightCopy, named_tensors

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128]
OTHERS = [torch.int64, torch.int32, torch.uint8, torch.bool]
NARROW = (torch.bfloat16, torch.float16)


def filled(shape: tuple[int, ...], dtype: torch.dtype, draw: torch.Generator) -> torch.Tensor:
    if dtype in OTHERS:
        return torch.randint(0, 2, shape, generator=draw).to(dtype)
    if dtype.is_complex:
        return torch.complex(*(torch.randn(shape, generator=draw, dtype=torch.float64) for _ in "ri")).to(dtype)
    return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)


@st.composite
def modules(draw: st.DrawFn) -> nn.Module:
    """Return a random tree of modules with every kind of tensor."""
    seeds = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def node(depth: int) -> nn.Module:
        module = nn.Module()
        for index in range(draw(st.integers(0, 3))):
            shape = draw(st.sampled_from([(), (3,), (0,), (2, 0, 3), (4, 2), (2, 3, 1, 2)]))
            values = filled(shape, draw(st.sampled_from(FLOATS)), seeds)
            module.register_parameter(f"p{index}", nn.Parameter(values, requires_grad=draw(st.booleans())))
        for index in range(draw(st.integers(0, 3))):
            dtype = draw(st.sampled_from(FLOATS + OTHERS))
            values = filled(draw(st.sampled_from([(), (0,), (5,), (2, 2)])), dtype, seeds)
            if dtype.is_floating_point and values.numel() and draw(st.booleans()):
                values.view(-1)[0] = -torch.inf
            module.register_buffer(f"b{index}", values, persistent=draw(st.booleans()))
        module.register_parameter("absent", None)
        if depth < 2:
            for index in range(draw(st.integers(0, 2))):
                module.add_module(f"m{index}", node(depth + 1))
        return module

    root = node(0)
    root.first = nn.Linear(2, 3)
    root.second = nn.Linear(2, 3)
    if draw(st.booleans()):
        root.second.weight = root.first.weight
    if draw(st.booleans()):
        root.second.bias.data = root.first.bias.data  # two parameters, one storage
    return root


def values_of(source: nn.Module | WeightCopy) -> dict[str, torch.Tensor]:
    pairs = source.tensors.items() if isinstance(source, WeightCopy) else named_tensors(source)
    return {name: tensor.detach().clone() for name, tensor in pairs}


def scramble(module: nn.Module, seed: int = 1) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in named_tensors(module):
            new = filled(tuple(tensor.shape), tensor.dtype, draw)
            if tensor.is_floating_point():
                new = torch.where(torch.isfinite(tensor), new, tensor)
            tensor.copy_(new)


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name].to(value.dtype)), name


@given(modules())
@settings(deadline=None, max_examples=100)
def test_a_copy_is_equal_and_shares_no_storage(module: nn.Module) -> None:
    held = WeightCopy(module)
    assert_same(values_of(module), values_of(held))
    theirs = {tensor.untyped_storage().data_ptr() for _, tensor in named_tensors(module) if tensor.numel()}
    ours = [tensor.untyped_storage().data_ptr() for tensor in held.tensors.values() if tensor.numel()]
    assert theirs.isdisjoint(ours)
    assert len(set(ours)) == len(ours)
    for name, tensor in named_tensors(module):
        assert held[name].dtype == (torch.float32 if tensor.dtype in NARROW else tensor.dtype)
        assert not held[name].requires_grad
    assert list(held) == [name for name, _ in named_tensors(module)]
    assert len(held) == len(list(held))
    assert all(name in held for name in held)


@given(modules(), st.integers(0, 5))
@settings(deadline=None, max_examples=100)
def test_swap_exchanges_and_a_second_swap_puts_back_bit_for_bit(module: nn.Module, seed: int) -> None:
    held = WeightCopy(module)
    scramble(module, seed)
    for weight in (0.3, 0.001):  # so that wide values have more digits than the module's tensors
        held.lerp_from(module, weight)
    scramble(module, seed + 1)
    module_before, held_before = values_of(module), values_of(held)
    identities = [id(tensor) for _, tensor in named_tensors(module)]
    held.swap(module)
    assert held.swapped
    assert_same(module_before, values_of(held))
    assert_same({name: tensor.to(module_before[name].dtype) for name, tensor in held_before.items()}, values_of(module))
    held.swap(module)
    assert not held.swapped
    assert_same(module_before, values_of(module))
    assert_same(held_before, values_of(held))
    assert identities == [id(tensor) for _, tensor in named_tensors(module)]


@given(modules())
@settings(deadline=None, max_examples=80)
def test_lerp_with_weight_one_is_copy_and_with_zero_identity(module: nn.Module) -> None:
    held = WeightCopy(module)
    before = values_of(held)
    scramble(module)
    averaged = {
        name: tensor for name, tensor in named_tensors(module)
        if (tensor.is_floating_point() or tensor.is_complex()) and isinstance(tensor, nn.Parameter)
    }  # fmt: skip
    held.lerp_from(module, 0.0)
    assert_same({name: before[name] for name in averaged}, {name: held[name] for name in averaged})
    held.lerp_from(module, 1.0)
    assert_same(values_of(module), values_of(held))
    scramble(module, 2)
    held.copy_from(module)
    assert_same(values_of(module), values_of(held))
    after = values_of(held)
    scramble(module, 3)
    held.copy_to(module)
    assert_same(values_of(module), after)


class Mixed(nn.Module):
    """One tensor of each kind, with what ought to become of it."""

    def __init__(self) -> None:
        super().__init__()
        for dtype in FLOATS:
            setattr(self, str(dtype).replace("torch.", "of_"), nn.Parameter(torch.zeros(7, dtype=dtype)))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.norm = nn.BatchNorm1d(4, affine=False)
        self.register_buffer("codebook", torch.zeros(4))
        self.register_buffer("unknown", torch.zeros(4))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("flags", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("cache", torch.zeros(3), persistent=False)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 0.999])
def test_an_average_of_recorded_states_is_the_closed_form_sum(momentum: float) -> None:
    module = Mixed()
    scramble(module, 0)
    held = WeightCopy(module, average_buffers=("code*",))
    history = [values_of(module)]
    for step in range(25):
        scramble(module, step + 1)
        held.lerp_from(module, 1 - momentum)
        history.append(values_of(module))
    weights = [momentum**25, *((1 - momentum) * momentum ** (25 - k) for k in range(1, 26))]
    for name, value in held.tensors.items():
        if name in ("norm.num_batches_tracked", "unknown", "count", "flags", "cache", "mask"):
            assert torch.equal(value, history[-1][name]), name
            continue
        exact = sum(w * h[name].to(torch.complex128) for w, h in zip(weights, history, strict=True))
        tolerance = 1e-13 if value.dtype in (torch.float64, torch.complex128) else 3e-6
        torch.testing.assert_close(value.to(torch.complex128), exact, rtol=0, atol=tolerance)


def test_the_average_is_torchs_for_float_tensors() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    theirs = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.97), use_buffers=True)
    theirs.update_parameters(module)  # the first call copies
    held = WeightCopy(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        module(torch.randn(8, 3, 4, 4)).square().mean().backward()
        optimizer.step()
        held.lerp_from(module, 1 - 0.97)
        theirs.update_parameters(module)
    for name, value in theirs.module.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(held[name], value, rtol=0, atol=1e-7)
    assert held["1.num_batches_tracked"] == module[1].num_batches_tracked == 30


@pytest.mark.parametrize("dtype", NARROW)
def test_sixteen_bits_do_not_stall(dtype: torch.dtype) -> None:
    layer = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.ones_(layer.weight)
    held = WeightCopy(layer)
    nn.init.constant_(layer.weight, 1.5)
    for _ in range(5000):  # in 16 bits, 0.001 * 0.5 would be lost at every step
        held.lerp_from(layer, 0.001)
    assert held["weight"].item() == pytest.approx(1.5 - 0.5 * 0.999**5000, abs=1e-4)


def test_what_was_changed_while_exchanged_is_kept_in_the_right_place() -> None:
    layer = nn.BatchNorm1d(2).to(torch.bfloat16)
    held = WeightCopy(layer)
    nn.init.constant_(layer.weight, 2.0)
    held.lerp_from(layer, 0.001)
    wide = held["weight"].clone()
    held.swap(layer)
    layer.running_mean[0] = 3.0
    held.swap(layer)
    assert held["running_mean"].tolist() == [3.0, 0.0]
    assert layer.running_mean.tolist() == [0.0, 0.0]
    assert torch.equal(held["weight"], wide)
    assert layer.weight.tolist() == [2.0, 2.0]


def net(units: int = 3) -> nn.Module:
    module = nn.Module()
    module.body = nn.Linear(2, 4)
    module.head = nn.Linear(4, units)
    return module


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("old", "new"), [(3, 5), (5, 3)])
def test_growth_keeps_the_old_block_and_takes_new_units_from_the_module(
    old: int, new: int, dtype: torch.dtype, swapped: bool
) -> None:
    module = net(old).to(dtype)
    held = WeightCopy(module)
    with torch.no_grad():
        module.head.weight.fill_(7.0)
    held.lerp_from(module, 0.001)
    slow = held["head.weight"].clone()
    if swapped:
        held.swap(module)
    larger = nn.Linear(4, new).to(dtype)
    both = min(old, new)
    with torch.no_grad():
        larger.weight[:both] = module.head.weight[:both]
        larger.bias[:both] = module.head.bias[:both]
    module.head = larger
    fresh = larger.weight[both:].detach().clone()
    if swapped:
        held.swap(module)
    else:
        held.sync(module)
    assert held["head.weight"].shape == module.head.weight.shape == (new, 4)
    assert torch.equal(held["head.weight"][:both], slow[:both])
    assert torch.equal(held["head.weight"][both:], fresh.float())
    assert torch.equal(module.head.weight[both:], fresh)
    assert (module.head.weight[:both] == 7.0).all()


def test_structure_is_followed_when_parts_come_and_go() -> None:
    module = net()
    held = WeightCopy(module)
    body = held["body.weight"].clone()
    scramble(module)
    del module.head
    module.extra = nn.BatchNorm1d(2)
    held.sync(module)
    assert list(held) == [name for name, _ in named_tensors(module)]
    assert torch.equal(held["body.weight"], body)
    module.body.weight = nn.Parameter(torch.zeros(4))  # another number of dimensions: nothing to keep
    held.sync(module)
    assert torch.equal(held["body.weight"], torch.zeros(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_that_comes_while_exchanged_is_the_same_in_both(dtype: torch.dtype) -> None:
    module = net().to(dtype)
    held = WeightCopy(module)
    scramble(module)
    before = values_of(module)
    held.swap(module)
    module.extra = nn.Linear(2, 2).to(dtype)
    extra = module.extra.weight.detach().clone()
    held.swap(module)
    assert_same(before | {f"extra.{n}": t for n, t in module.extra.named_parameters()}, values_of(module))
    assert torch.equal(held["extra.weight"], extra.float())


def test_stale_tensors_are_never_acted_on() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    held = WeightCopy(module)

    def follows() -> None:
        held.copy_from(module)
        scramble(module, 4)
        held.lerp_from(module, 1.0)
        assert_same(values_of(module), values_of(held))
        scramble(module, 5)
        held.copy_to(module)
        assert_same(values_of(module), values_of(held))

    follows()
    stale = module[0].weight
    module[0].weight = nn.Parameter(torch.full((2, 2), 3.0))
    untouched = stale.detach().clone()
    follows()
    assert torch.equal(stale, untouched)
    module[0].bias.data = torch.full((2,), 4.0)  # same parameter, other storage
    follows()
    assert held["0.bias"].untyped_storage().data_ptr() != module[0].bias.untyped_storage().data_ptr()
    module[1].register_buffer("running_mean", torch.ones(2))
    follows()
    module[1].running_var = torch.ones(2)
    follows()
    module[0] = nn.Linear(2, 2)
    follows()
    module[0].bias = None
    follows()
    assert "0.bias" not in held
    module.add_module("last", module._modules.pop("1"))
    follows()
    assert "last.running_mean" in held and "1.running_mean" not in held
    other = nn.Sequential(nn.Linear(2, 2))
    held.copy_from(other)
    assert_same(values_of(other), values_of(held))


@pytest.mark.parametrize("swapped", [False, True])
def test_other_dtypes_are_followed_with_values_kept(swapped: bool) -> None:
    module = nn.Linear(2, 2)
    held = WeightCopy(module)
    scramble(module)
    held.lerp_from(module, 0.5)
    slow, fast = values_of(held), values_of(module)
    if swapped:
        held.swap(module)
    for convert in (module.double, module.bfloat16, module.float, module.half, module.double):
        convert()
        held.sync(module)
        assert held["weight"].dtype == (torch.float32 if module.weight.dtype in NARROW else module.weight.dtype)
    if swapped:
        held.swap(module)
    for name, tensor in named_tensors(module):
        torch.testing.assert_close(tensor.float(), fast[name], rtol=0.01, atol=0)
        torch.testing.assert_close(held[name].float(), slow[name], rtol=0.01 if swapped else 1e-6, atol=0)


def test_what_cannot_be_copied_is_refused_by_name_and_nothing_changes() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    held = WeightCopy(module)
    before = values_of(held)
    for name, broken, reason in [
        ("lazy.weight", nn.LazyLinear(3), "lazy"),
        ("lazy.weight", nn.Linear(2, 3, device="meta"), "meta"),
    ]:
        module.add_module("lazy", broken)
        with pytest.raises(ValueError, match=rf"'{name}'.*{reason}"):
            held.swap(module)
        with pytest.raises(ValueError, match=reason):
            WeightCopy(module)
    module.lazy = nn.Module()
    module.lazy.register_buffer("adjacency", torch.eye(2).to_sparse())
    with pytest.raises(ValueError, match=r"'lazy.adjacency'.*sparse"):
        held.sync(module)
    module.lazy.register_buffer("adjacency", torch.zeros(1).expand(4))
    with pytest.raises(ValueError, match=r"'lazy.adjacency'.*expanded"):
        held.sync(module)
    assert not held.swapped
    assert_same(before, values_of(held))
    whole = nn.Linear(2, 2)
    alone = WeightCopy(whole)
    whole.to("meta")
    with pytest.raises(ValueError, match="meta"):
        alone.copy_from(whole)
    assert not alone["weight"].is_meta


def test_while_exchanged_all_but_the_exchange_is_refused() -> None:
    module = nn.Linear(2, 2)
    held = WeightCopy(module)
    held.swap(module)
    for operation in (
        lambda: held.copy_from(module),
        lambda: held.copy_to(module),
        lambda: held.lerp_from(module, 0.5),
        held.state_dict,
        lambda: held.load_state_dict({}),
    ):
        with pytest.raises(RuntimeError, match="swap back first"):
            operation()


def test_units_grown_in_inference_mode_are_averaged_afterwards() -> None:
    module = net()
    held = WeightCopy(module)
    module.head = nn.Linear(4, 6)
    with torch.inference_mode():
        held.swap(module)
        held.swap(module)
    scramble(module)
    held.lerp_from(module, 1.0)
    assert_same(values_of(module), values_of(held))


@given(modules())
@settings(deadline=None, max_examples=40)
def test_state_goes_through_a_file_and_back(module: nn.Module) -> None:
    held = WeightCopy(module)
    scramble(module)
    held.lerp_from(module, 0.3)
    file = io.BytesIO()
    torch.save(held.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = WeightCopy(module)
    other.load_state_dict(state)
    assert_same(values_of(held), values_of(other))
    for name, value in other.tensors.items():
        if value.numel():
            assert value.data_ptr() != state[name].data_ptr()


@pytest.mark.parametrize("swapped", [False, True])
def test_renamed_tensors_keep_their_values_when_the_module_is_rearranged(swapped: bool) -> None:
    module = net().to(torch.bfloat16)  # narrow: the copy's wider values are parked while exchanged
    held = WeightCopy(module)
    scramble(module)
    held.lerp_from(module, 0.3)
    slow, fast = values_of(held), values_of(module)
    if swapped:
        held.swap(module)
    names = {name: name.replace("head.", "head.old.") for name in slow if name.startswith("head.")}
    module.head = nn.ModuleDict({"old": module.head, "new": nn.Linear(2, 2).to(torch.bfloat16)})
    held.rename(names)
    held.sync(module)
    if swapped:
        held.swap(module)
    new = {name: tensor.detach() for name, tensor in module.named_parameters() if ".new." in name}
    assert new
    assert_same({names.get(n, n): t for n, t in slow.items()} | {n: t.float() for n, t in new.items()}, values_of(held))
    assert_same({names.get(n, n): t for n, t in fast.items()} | new, values_of(module))


def test_names_that_are_not_held_or_taken_are_refused_and_nothing_changes() -> None:
    held = WeightCopy(nn.Linear(2, 2))
    before = values_of(held)
    with pytest.raises(ValueError, match=r"no tensors are held under \['wieght'\]"):
        held.rename({"wieght": "w"})
    with pytest.raises(ValueError, match=r"several tensors would be called \['bias'\]"):
        held.rename({"weight": "bias"})
    assert_same(before, values_of(held))
    held.rename({"weight": "bias", "bias": "weight"})
    assert_same({"bias": before["weight"], "weight": before["bias"]}, values_of(held))


def test_a_wrong_state_is_refused_and_nothing_changes() -> None:
    held = WeightCopy(net())
    before = values_of(held)
    good = {name: tensor + 1 for name, tensor in held.state_dict().items()}
    wrong_shape = good | {"head.bias": torch.zeros(9)}
    missing = {name: tensor for name, tensor in good.items() if name != "head.bias"}
    extra = good | {"tail": torch.zeros(1)}
    for state, message in [
        (wrong_shape, r"head.bias \(9,\) for \(3,\)"),
        (missing, r"missing \['head.bias'\]"),
        (extra, r"unexpected \['tail'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            held.load_state_dict(state)
        assert_same(before, values_of(held))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda held: pickle.loads(pickle.dumps(held))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_duplicates_are_independent_also_while_exchanged(duplicate, dtype: torch.dtype) -> None:
    module = net().to(dtype)
    held = WeightCopy(module)
    scramble(module)
    held.lerp_from(module, 0.3)
    slow, fast = values_of(held), values_of(module)
    held.swap(module)
    twin_module, twin = copy.deepcopy(module), duplicate(held)
    held.swap(module)
    scramble(module, 9)
    held.copy_from(module)
    twin.swap(twin_module)
    assert_same(slow, values_of(twin))
    assert_same(fast, values_of(twin_module))


def test_squared_distance_is_that_of_trainable_parameters() -> None:
    module = Mixed()
    held = WeightCopy(module)
    scramble(module)
    expected = sum((p.detach().to(torch.complex128).abs() ** 2).sum() for p in module.parameters() if p.requires_grad)
    assert held.squared_distance(module).item() == pytest.approx(expected.item(), rel=1e-6)
    part = held.squared_distance(module, names=["of_float64", "frozen", "nonsense"])
    assert part.item() == pytest.approx(module.of_float64.detach().square().sum().item(), rel=1e-12)
    assert part.shape == ()
    held.copy_from(module)
    assert held.squared_distance(module) == 0


def test_named_tensors_have_the_names_of_the_state_dict_and_come_once() -> None:
    module = nn.ModuleDict({"a": nn.BatchNorm1d(2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    assert {name for name, _ in named_tensors(module)} == set(module.state_dict())
    module["c"].weight = module["b"].weight
    assert {name for name, _ in named_tensors(module)} == set(module.state_dict()) - {"c.weight"}
    module["d"] = module["a"]
    assert len(list(named_tensors(module))) == 5 + 3


@pytest.mark.gpu
def test_tensors_of_all_types_are_copied_on_a_gpu() -> None:
    # In one list: torch has taken the kernel of the first for all of them (pytorch/pytorch#173383).
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3).bfloat16()).cuda()
    net.register_buffer("mask", torch.tensor([True, False, True], device="cuda"))
    net[1].num_batches_tracked.fill_(2**40 + 7)
    copy = WeightCopy(net)
    before = {name: tensor.detach().cpu() for name, tensor in named_tensors(net)}
    with torch.no_grad():
        for tensor in dict(named_tensors(net)).values():
            tensor.zero_()
    for move in (copy.swap, copy.swap, copy.copy_to, copy.copy_from, copy.copy_to):
        move(net)
        held = dict(named_tensors(net))
        if not copy.swapped and move == copy.swap:
            assert not any(tensor.any() for tensor in held.values())
        else:
            assert all(torch.equal(tensor.cpu(), before[name]) for name, tensor in held.items())
