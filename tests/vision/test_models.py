import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ht_ray.errors import SettingError
from ht_ray.mechanisms.units.crelu import CReLU
from ht_ray.mechanisms.weights.rng import derive_seed, isolated_rng
from ht_ray.vision.models import (
    VGG16,
    ModelConfig,
    Network,
    ResNet18,
    VisionTransformer,
    make_model,
    patch_size_for,
)

NAMES = ["mlp", "resnet18", "vit_tiny", "vgg16"]
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)]
# Narrow enough for a test, and different in width, dropout and head from the published networks.
NARROW = {
    "mlp": ModelConfig("mlp", hidden=(24, 16), dropout=0.1),
    "resnet18": ModelConfig("resnet18", width=1 / 16, head_hidden=(128,)),
    "vit_tiny": ModelConfig("vit_tiny", width=1 / 12),
    "vgg16": ModelConfig("vgg16", width=1 / 16),
    "mlp, crelu": ModelConfig("mlp", hidden=(24, 16), activation="crelu"),
    "resnet18, crelu": ModelConfig("resnet18", width=1 / 16, activation="crelu"),
    "vit_tiny, crelu": ModelConfig("vit_tiny", width=1 / 12, activation="crelu"),
    "vgg16, crelu": ModelConfig("vgg16", width=1 / 16, activation="crelu", normalisation="layer"),
    "mlp, layer": ModelConfig("mlp", hidden=(24, 16), normalisation="layer"),
    "resnet18, layer": ModelConfig("resnet18", width=1 / 16, normalisation="layer"),
    "vgg16, layer": ModelConfig("vgg16", width=1 / 16, normalisation="layer"),
}
VARIANTS = list(NARROW)
PAPER = {
    "mlp": ((1, 28, 28), 10),
    "resnet18": ((3, 32, 32), 10),
    "vit_tiny": ((3, 32, 32), 100),
    "vgg16": ((3, 64, 64), 200),
}


def narrow(name: str, shape: tuple[int, int, int] = (3, 32, 32), *, seed: int = 0) -> Network:
    return make_model(NARROW[name], shape=shape, num_classes=10, seed=seed)


def published(name: str) -> Network:
    shape, classes = PAPER[name]
    return make_model(ModelConfig(name), shape=shape, num_classes=classes, seed=0)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def images_of(shape: tuple[int, int, int], batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(3))


def copy_in_order(source: nn.Module, target: nn.Module) -> None:
    """Copy every tensor of `source` into `target`, which lists tensors of the same shapes in the same order."""
    values, places = list(source.state_dict().values()), list(target.state_dict().values())
    assert [v.shape for v in values] == [p.shape for p in places]
    for value, place in zip(values, places, strict=True):
        place.copy_(value)


def randomised(module: nn.Module) -> nn.Module:
    """Give every parameter and statistic a value that initialisation does not give it."""
    with isolated_rng(5), torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(torch.empty_like(tensor).uniform_(0.7, 1.3)).add_(torch.rand_like(tensor) * 0.05)
    return module


# Published sizes


def test_mlp_is_784_100_100_10_with_batch_norm():
    network = published("mlp")
    linear, norms = 784 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10, 2 * 2 * 100
    assert count(network) == linear + norms
    assert count(network.head) == 100 * 10 + 10


def test_resnet18_has_the_published_number_of_parameters():
    assert count(published("resnet18")) == 11_173_962


def test_vit_tiny_has_the_published_number_of_parameters():
    deit_ti = VisionTransformer((3, 224, 224), patch_size=16)
    assert count(deit_ti) + 192 * 1000 + 1000 == 5_717_416
    network = published("vit_tiny")
    patches, positions = 4 * 4 * 3 * 192, 65 * 192
    assert count(network) == 5_717_416 - (16 * 16 * 3 * 192 - patches) - (197 * 192 - positions) - 900 * 193
    assert network.backbone.tokens.position.shape == (1, 65, 192)


def test_vgg16_head_is_the_share_that_the_paper_states():
    network = published("vgg16")
    assert network.feature_size == 2 * 2 * 512
    assert [layer.out_features for layer in network.head if isinstance(layer, nn.Linear)] == [1024, 1024, 200]
    assert 0.18 <= count(network.head) / count(network) < 0.19


def test_only_vit_tiny_drops_activations_by_default():
    for name in NAMES:
        rates = {module.p for module in published(name).modules() if isinstance(module, nn.Dropout)}
        assert rates == ({0.1} if name == "vit_tiny" else set())


@pytest.mark.parametrize(("width", "dim", "heads"), [(1 / 12, 16, 1), (0.5, 96, 2), (1, 192, 3), (2, 384, 6)])
def test_vit_widths(width, dim, heads):
    network = make_model(ModelConfig("vit_tiny", width=width), shape=(1, 8, 8), num_classes=2, seed=0)
    assert network.feature_size == dim
    assert {m.heads for m in network.modules() if hasattr(m, "heads")} == {heads}


# CReLU and LayerNorm


def layers_of(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, (nn.Linear, CReLU, nn.ReLU))]


def test_mlp_with_crelu_has_half_the_units_and_as_many_features():
    network = make_model(ModelConfig(activation="crelu"), shape=(1, 28, 28), num_classes=10, seed=0)
    assert [type(layer) for layer in layers_of(network)] == [nn.Linear, CReLU, nn.Linear, CReLU, nn.Linear]
    linears = [(layer.in_features, layer.out_features) for layer in layers_of(network) if isinstance(layer, nn.Linear)]
    assert linears == [(784, 50), (100, 50), (100, 10)]
    assert network.feature_size == 100
    network.eval()
    images = images_of((1, 28, 28))
    x = images.flatten(1)
    for hidden, norm in zip(network.backbone.layers[1::3], network.backbone.layers[2::3], strict=True):
        x = norm(x @ hidden.weight.T + hidden.bias)
        x = torch.cat([x.clamp(min=0), -x.clamp(max=0)], 1)
    torch.testing.assert_close(network(images), network.head(x))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vgg16", [(2048, 512), (1024, 512), (1024, 200)]),
        ("resnet18", [(512, 256), (512, 10)]),
        ("vit_tiny", [(192, 96), (192, 100)]),
    ],
)
def test_other_networks_have_crelu_in_the_head_alone(name, wanted):
    shape, classes = PAPER[name]
    network = make_model(ModelConfig(name, activation="crelu"), shape=shape, num_classes=classes, seed=0)
    kinds = [type(layer) for layer in network.head if not isinstance(layer, nn.Dropout)]
    assert [issubclass(kind, nn.Linear) for kind in kinds] == [True, False] * (len(wanted) - 1) + [True]
    assert all(kind is CReLU for kind in kinds[1::2])
    linears = [layer for layer in network.head if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linears] == wanted
    assert not any(isinstance(part, CReLU) for part in network.backbone.modules())
    # The draws of the backbone come first and are those of the published network.
    torch.testing.assert_close(network.backbone.state_dict(), published(name).backbone.state_dict(), rtol=0, atol=0)


def test_odd_layers_are_rounded_up_before_crelu():
    config = ModelConfig("mlp", hidden=(25,), head_hidden=(7,), activation="crelu")
    network = make_model(config, shape=(1, 8, 8), num_classes=3, seed=0)
    assert [layer.out_features for layer in layers_of(network) if isinstance(layer, nn.Linear)] == [13, 4, 3]
    assert network(images_of((1, 8, 8))).shape == (4, 3)


@pytest.mark.parametrize("name", ["mlp", "resnet18", "vgg16"])
def test_layer_norm_takes_the_places_of_batch_norm(name):
    def norms(network: Network) -> list[tuple[str, int]]:
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
        return [(where, part.weight.numel()) for where, part in network.named_modules() if isinstance(part, kinds)]

    layer = narrow(f"{name}, layer")
    reference = make_model(
        ModelConfig(name, width=NARROW[name].width, hidden=NARROW[name].hidden),
        shape=(3, 32, 32),
        num_classes=10,
        seed=0,
    )
    assert norms(layer) == norms(reference)
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in layer.modules())
    # Nothing of normalisation is drawn.
    for key, value in layer.named_parameters():
        assert torch.equal(value, reference.get_parameter(key)), key
    images = images_of((3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(layer(images)[:2], layer(images[:2]))  # samples do not see each other
        torch.testing.assert_close(layer.eval()(images), layer.train()(images))


def test_layer_norm_of_maps_is_over_channels_and_positions():
    network = randomised(narrow("vgg16, layer"))
    conv, norm = network.backbone.layers[:2]
    maps = conv(images_of((3, 32, 32)))
    whole = F.layer_norm(maps, maps.shape[1:])
    torch.testing.assert_close(norm(maps), whole * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1))


# Sums of all initial weights and of their squares, from before there were other activations and normalisations.
RECORDED = {
    "mlp": (205.3266, 270.8113),
    "resnet18": (4859.4138, 12492.8174),
    "vit_tiny": (4829.7062, 7000.5702),
    "vgg16": (4302.6566, 12405.2961),
}


@pytest.mark.parametrize("name", NAMES)
def test_published_networks_start_from_the_weights_they_always_had(name):
    weights = torch.cat([p.detach().double().flatten() for p in published(name).parameters()])
    assert (weights.sum().item(), weights.square().sum().item()) == pytest.approx(RECORDED[name], rel=1e-5)


# Against torchvision


@pytest.mark.parametrize("training", [False, True])
def test_resnet18_computes_what_torchvision_computes(training):
    reference = torchvision.models.resnet18()
    reference.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    reference.maxpool = nn.Identity()
    reference.fc = nn.Identity()
    randomised(reference).train(training)
    ours = ResNet18(3).train(training)
    copy_in_order(reference, ours)
    images = images_of((3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), reference(images))
    torch.testing.assert_close(
        list(ours.state_dict().values()), list(reference.state_dict().values()), msg="BatchNorm statistics"
    )


@pytest.mark.parametrize("side", [32, 64])
def test_vgg16_computes_what_torchvision_computes(side):
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True)
    reference = randomised(layers).eval()
    ours = VGG16((3, side, side)).eval()
    copy_in_order(reference, ours)
    images = images_of((3, side, side), batch=2)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), reference(images).flatten(1))


def test_vit_tiny_computes_what_torchvision_computes():
    reference = torchvision.models.VisionTransformer(
        image_size=32, patch_size=4, num_layers=12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=100
    )
    randomised(reference).eval()
    ours = published("vit_tiny").eval()
    moved = {
        "backbone.patches.weight": "conv_proj.weight",
        "backbone.patches.bias": "conv_proj.bias",
        "backbone.tokens.class_token": "class_token",
        "backbone.tokens.position": "encoder.pos_embedding",
    }
    theirs = reference.state_dict()
    rest = iter([value for name, value in theirs.items() if name not in moved.values()])
    state = {
        name: theirs[moved[name]] if name in moved else next(rest).view_as(value)
        for name, value in ours.state_dict().items()
    }
    ours.load_state_dict(state)
    assert next(rest, None) is None
    images = images_of((3, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), reference(images), rtol=1e-4, atol=1e-4)


def test_dropout_of_vit_tiny_acts_where_torchvision_drops():
    reference = torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=1, hidden_dim=8, mlp_dim=32, dropout=0.1
    )
    ours = VisionTransformer((3, 8, 8), dim=8, heads=1, depth=2, dropout=0.1)

    def drops(module: nn.Module) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = []
        for child in module.modules():
            if isinstance(child, nn.Dropout):
                child.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
        module(images_of((3, 8, 8)))
        return shapes

    assert drops(ours) == drops(reference)


# Initial weights


def test_initial_distributions():
    network = published("vit_tiny")
    for name, parameter in network.named_parameters():
        if name.startswith("backbone.patches"):
            assert parameter.abs().max() <= (4 * 4 * 3) ** -0.5
        elif name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.2), name
    for name in ("resnet18", "vgg16"):
        for module in published(name).modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] ** 2
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
                assert abs(module.weight.mean().item()) < 0.1 * (2 / fan_out) ** 0.5


@pytest.mark.parametrize("name", VARIANTS)
def test_initial_weights_depend_on_the_seed_alone(name):
    with isolated_rng(1):
        first = narrow(name).state_dict()
    with isolated_rng(2):
        again = narrow(name).state_dict()
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    other = narrow(name, seed=1)
    for layer, value in other.named_parameters():
        # What is drawn at all (not zeros or ones) is drawn anew.
        if first[layer].unique().numel() > 1:
            assert not torch.equal(value, first[layer]), layer


@pytest.mark.parametrize("name", NAMES)
def test_callers_generator_is_neither_read_nor_moved(name):
    with isolated_rng(7):
        before = torch.get_rng_state()
        narrow(name)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", VARIANTS)
def test_resetting_every_module_reproduces_the_construction(name):
    network = narrow(name)
    wanted = copy.deepcopy(network.state_dict())
    randomised(network)
    for tensor in network.state_dict().values():
        if not tensor.is_floating_point():
            tensor.fill_(99)
    assert not any(torch.equal(value, wanted[key]) for key, value in network.state_dict().items())

    def reset(module: nn.Module) -> None:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    with isolated_rng(derive_seed(0, "init")):
        network.apply(reset)
    torch.testing.assert_close(network.state_dict(), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_module_that_owns_parameters_can_reset_them_alone(name):
    network = narrow(name)
    wanted = copy.deepcopy(network)
    randomised(network)
    for (where, module), original in zip(network.named_modules(), wanted.modules(), strict=True):
        if list(module.parameters(recurse=False)):
            with isolated_rng(2):
                module.reset_parameters()
            for key, value in module.named_parameters(recurse=False):
                expected = getattr(original, key)
                assert value.mean().item() == pytest.approx(expected.mean().item(), abs=0.25), (where, key)
                if value.numel() > 100:
                    assert value.std().item() == pytest.approx(expected.std().item(), rel=0.3), (where, key)


# Sizes, training


@pytest.mark.parametrize(
    ("name", "shape"),
    [*itertools.product(NAMES, SHAPES), *((name, (3, 8, 8)) for name in VARIANTS if name not in NAMES)],
)
def test_network_fits_the_images_and_learns(name, shape):
    network = narrow(name, shape)
    labels = torch.arange(16) % 4
    images = images_of(shape, batch=4)[labels] + 0.3 * images_of(shape, batch=16)
    assert network.backbone(images).shape == (16, network.feature_size)
    assert network(images).shape == (16, 10)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    with isolated_rng(0):
        # The initial weights of vit_tiny's linear layers are small, and a hidden layer in its head delays it.
        for _ in range(16 if name == "vit_tiny, crelu" else 8):
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 13), (4, 2, 64)])
@pytest.mark.parametrize("name", VARIANTS)
def test_odd_sizes_work(name, shape):
    assert narrow(name, shape).eval()(images_of(shape)).shape == (4, 10)


@pytest.mark.parametrize(
    ("sides", "size"),
    [((32, 32), 4), ((64, 64), 4), ((28, 28), 4), ((8, 8), 4), ((6, 12), 3), ((8, 6), 2), ((29, 8), 1)],
)
def test_patches_tile_the_image(sides, size):
    assert patch_size_for(*sides) == size


@pytest.mark.parametrize("name", VARIANTS)
def test_backbone_and_head_hold_every_tensor_once(name):
    network = narrow(name)
    parts = [key.split(".")[0] for key in network.state_dict()]
    assert set(parts) == {"backbone", "head"}
    assert count(network.backbone) + count(network.head) == count(network)
    assert network.head[0].in_features == network.feature_size


@pytest.mark.parametrize("name", VARIANTS)
def test_each_activation_is_its_own_module_and_works_out_of_place(name):
    network, calls = narrow(name), []
    activations = [m for m in network.modules() if isinstance(m, (nn.ReLU, nn.GELU, CReLU))]
    assert not any(getattr(module, "inplace", False) for module in activations)
    for module in activations:
        module.register_forward_hook(lambda module, _, __: calls.append(module))
    network(images_of((3, 32, 32)))
    assert len(calls) == len(set(calls)) == len(activations) > 0


@pytest.mark.parametrize("name", VARIANTS)
def test_channels_last_and_bfloat16_change_little(name):
    network = narrow(name).eval()
    images = images_of((3, 32, 32))
    with torch.no_grad():
        wanted = network(images)
        last = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, wanted, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = network(images)
    assert low.dtype == torch.bfloat16
    assert F.cosine_similarity(low.float(), wanted).min() > 0.99


@pytest.mark.parametrize("name", VARIANTS)
def test_graph_is_captured_whole(name):
    network = narrow(name)
    images = images_of((3, 32, 32))
    torch.compiler.reset()  # what was captured for the other networks counts against a limit
    compiled = torch.compile(copy.deepcopy(network), backend="eager", fullgraph=True)
    with isolated_rng(0):
        wanted = network(images)
    with isolated_rng(0):
        torch.testing.assert_close(compiled(images), wanted)


def test_second_derivatives_of_attention_exist_with_the_math_kernel():
    network = make_model(ModelConfig("vit_tiny", width=1 / 12, dropout=0), shape=(1, 4, 8), num_classes=3, seed=0)
    weight = network.backbone.blocks[0].attention.qkv.weight
    with sdpa_kernel(SDPBackend.MATH):
        loss = network(images_of((1, 4, 8))).square().sum()
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        (curvature,) = torch.autograd.grad(gradient.square().sum(), weight)
    assert curvature.isfinite().all() and curvature.any()


# Settings


def test_width_narrows_backbone_and_head():
    network = make_model(ModelConfig("vgg16", width=0.25), shape=(3, 64, 64), num_classes=7, seed=0)
    assert network.feature_size == 2 * 2 * 128
    assert [layer.out_features for layer in network.head if isinstance(layer, nn.Linear)] == [256, 256, 7]
    network = make_model(ModelConfig("mlp", width=0.5), shape=(1, 8, 8), num_classes=7, seed=0)
    assert network.feature_size == 50


def test_head_and_dropout_can_be_set():
    config = ModelConfig("vgg16", width=1 / 8, dropout=0.5, head_hidden=(40,))
    network = make_model(config, shape=(3, 8, 8), num_classes=3, seed=0)
    assert [type(layer) for layer in network.head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    linear = make_model(ModelConfig("vgg16", width=1 / 8, head_hidden=()), shape=(3, 8, 8), num_classes=3, seed=0)
    assert [type(layer) for layer in linear.head] == [nn.Linear]


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_never_ignored(name):
    network = make_model(ModelConfig(name, width=1 / 8, dropout=0.5), shape=(1, 8, 8), num_classes=3, seed=0)
    images = images_of((1, 8, 8), batch=8)
    with isolated_rng(0):
        network.train()
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        assert not torch.equal(network(images), network(images))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "restnet18"}, r"ModelConfig\.name = 'restnet18'.*Did you mean 'resnet18'\?"),
        ({"hidden": (100, 0)}, r"ModelConfig\.hidden = 0"),
        (
            {"name": "vgg16", "hidden": (50, 50)},
            r"ModelConfig\.hidden = \(50, 50\): accepted for ModelConfig.name = 'mlp' only",
        ),
        ({"width": 0}, r"ModelConfig\.width = 0"),
        ({"dropout": 1.0}, r"ModelConfig\.dropout = 1\.0.*0 <= dropout < 1"),
        ({"head_hidden": (2.5,)}, r"ModelConfig\.head_hidden = 2\.5"),
        ({"activation": "CReLU"}, r"ModelConfig\.activation = 'CReLU'.*Did you mean 'crelu'\?"),
        (
            {"name": "resnet18", "activation": "crelu", "head_hidden": ()},
            r"ModelConfig\.activation = 'crelu': a linear head has no activation.*None for \(512,\)",
        ),
        ({"normalisation": "batch"}, r"ModelConfig\.normalisation = 'batch'"),
        ({"name": "vit_tiny", "normalisation": "layer"}, r"ModelConfig\.normalisation = 'layer'.*'published'"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(SettingError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((28, 28), 10, r"shape = \(28, 28\): accepted is \(channels, height, width\)"),
        ((0, 28, 28), 10, "shape = 0"),
        ((1, 28, 28), 0, "num_classes = 0"),
        ((1, 28, 28), 10.0, r"num_classes = 10\.0: accepted is a whole number"),
    ],
)
def test_shapes_that_cannot_work_are_named(shape, classes, message):
    with pytest.raises(SettingError, match=message):
        make_model(ModelConfig(), shape=shape, num_classes=classes, seed=0)


@pytest.mark.parametrize(("setting", "value"), [("patch_size", 5), ("patch_size", 0), ("heads", 5), ("heads", 0)])
def test_transformers_that_cannot_be_built_are_named(setting, value):
    with pytest.raises(SettingError, match=rf"VisionTransformer: {setting} = {value}"):
        VisionTransformer((3, 32, 32), **{setting: value})
