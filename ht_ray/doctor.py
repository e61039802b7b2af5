"""Command ``ht-ray doctor``: a network and data from files, and what `ht_ray.diagnostics.diagnose` says of them."""

from __future__ import annotations

import argparse
import inspect
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ht_ray._checks import check_number, did_you_mean
from ht_ray._device import check_device
from ht_ray._files import print_line
from ht_ray._parts import load_part
from ht_ray.diagnostics import diagnose
from ht_ray.errors import SettingError
from ht_ray.mechanisms import derive_seed, generator, isolated_rng

__all__ = ["main"]

NETWORKS = ("mlp", "resnet18", "vit_tiny", "vgg16")
#: Where a checkpoint may hold the weights.
INSIDE = ("model", "state_dict", "model_state_dict", "network", "strategy")
#: What a batch's parts may be called.
INPUTS, LABELS = ("inputs", "x", "X", "images", "data"), ("labels", "y", "targets")
DESCRIPTION = """Compare a network with freshly initialised ones, and say which signs of lost plasticity it shows, how
strong, and which methods of this package act on them. It reads files, and changes nothing."""


def main(arguments: Sequence[str] | None = None, program: str = "ht-ray doctor") -> int:
    """Run the command line; return 0, or 2 for what cannot be read or does not fit."""
    chosen = make_parser(program).parse_args(arguments)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        print_line(_diagnosis(chosen))
    except SettingError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    return 0


def make_parser(program: str = "ht-ray doctor") -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(prog=program, description=DESCRIPTION)
    parser.add_argument(
        "--model",
        required=True,
        help="my_package.my_module:make_network, called with shape= and num_classes= if it takes them; or "
        f"{', '.join(NETWORKS)}",
    )
    parser.add_argument("--checkpoint", help="its weights, as torch.save wrote a state dict; default: as it is made")
    parser.add_argument(
        "--data",
        required=True,
        help="a data set by name (digits, mnist, ...), or a batch: .pt or .npz with 'inputs' and 'labels'",
    )
    parser.add_argument("--data-root", help="folder of the images of a named data set; default: ~/.cache/ht-ray/data")
    parser.add_argument("--backbone", help="name of the sub-module whose output are the features; default: found")
    parser.add_argument("--samples", type=int, default=512, help="most samples that are used (default: 512)")
    parser.add_argument("--steps", type=int, default=100, help="steps of training of the probe (default: 100)")
    parser.add_argument("--fresh", type=int, default=5, help="number of fresh networks (default: 5)")
    parser.add_argument(
        "--learning-rate", type=float, default=1e-3, help="of the probe's AdamW; that of your training (default: 0.001)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default: 0)")
    parser.add_argument("--device", default="cpu", help="auto (a GPU if there is one), cpu, cuda (default: cpu)")
    return parser


def _diagnosis(chosen: argparse.Namespace) -> str:
    check_number("--learning-rate", chosen.learning_rate, low=0, low_open=True)
    check_number("--steps", chosen.steps, low=1, integer=True)
    check_number("--fresh", chosen.fresh, low=1, integer=True)
    check_number("--samples", chosen.samples, low=2, integer=True)
    device = check_device("--device", chosen.device)
    inputs, labels, num_classes = _batch(chosen.data, chosen.data_root, chosen.samples, chosen.seed)
    make = _factory(chosen.model, tuple(inputs.shape[1:]), num_classes)
    with isolated_rng(derive_seed(chosen.seed, "doctor: network")):
        model = make()
    if chosen.checkpoint is not None:
        _load(model, chosen.checkpoint)
    try:
        found = diagnose(
            model.to(device),
            inputs.to(device),
            labels.to(device),
            fresh=make,
            fresh_networks=chosen.fresh,
            num_classes=num_classes,
            backbone=chosen.backbone,
            make_optimizer=partial(torch.optim.AdamW, lr=chosen.learning_rate),
            loss=nn.functional.mse_loss if labels.is_floating_point() else nn.functional.cross_entropy,
            samples=chosen.samples,
            probe_steps=chosen.steps,
            seed=chosen.seed,
        )
    except (RuntimeError, IndexError, TypeError, AttributeError) as error:
        shapes = f"inputs {tuple(inputs.shape)} {inputs.dtype}, labels {tuple(labels.shape)} {labels.dtype}"
        raise SettingError(
            f"--model = {chosen.model!r}: it cannot be measured on --data = {chosen.data!r} ({shapes}): "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    return found.describe()


def _batch(data: str, root: str | None, samples: int, seed: int) -> tuple[Tensor, Tensor, int | None]:
    """Return inputs, labels, and the number of classes if it is known."""
    if data.endswith((".pt", ".npz")):
        inputs, labels = _read(data)
        classes = None if labels.is_floating_point() else int(labels.max()) + 1
        return inputs, labels, classes
    from ht_ray.vision import DATA_SETS, DataConfig, Normalise, load_data

    if data not in DATA_SETS:
        hint = did_you_mean(data, DATA_SETS)
        known = ", ".join(map(repr, DATA_SETS))
        raise SettingError(f"--data = {data!r}: accepted are {known}, and files that end in .pt or .npz.{hint}")
    images = load_data(DataConfig(data, root=root))
    order = torch.randperm(len(images.train_images), generator=generator(seed, "doctor: samples"))[:samples]
    inputs = Normalise(images.mean, images.std)(images.train_images[order])
    return inputs, images.train_labels[order], images.num_classes


def _read(path: str) -> tuple[Tensor, Tensor]:
    where = f"--data = {path!r}"
    try:
        if path.endswith(".npz"):
            import numpy as np

            with np.load(path, allow_pickle=False) as archive:
                found: Any = {name: torch.from_numpy(archive[name]) for name in archive.files}
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        ValueError,
        TypeError,
        RuntimeError,
        EOFError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise SettingError(f"{where}: it cannot be read ({_first_line(error)}).") from error
    if isinstance(found, (tuple, list)) and len(found) == 2:
        found = dict(zip(("inputs", "labels"), found, strict=True))
    if not isinstance(found, Mapping):
        raise SettingError(f"{where}: accepted is a dict with 'inputs' and 'labels', or a pair.")
    parts = []
    for names in (INPUTS, LABELS):
        name = next((name for name in names if isinstance(found.get(name), Tensor)), None)
        if name is None:
            raise SettingError(
                f"{where}: it has no tensor called {' or '.join(map(repr, names))}; it has "
                f"{', '.join(map(repr, found)) or 'nothing'}."
            )
        parts.append(found[name])
    inputs, labels = parts
    if len(inputs) != len(labels) or len(inputs) < 2:
        raise SettingError(f"{where}: {len(inputs)} inputs and {len(labels)} labels: accepted is one each, at least 2.")
    if inputs.dtype == torch.uint8:
        raise SettingError(f"{where}: inputs are uint8: give them as the network takes them, normalized.")
    if inputs.is_floating_point():
        inputs = inputs.float()
        if not torch.isfinite(inputs).all():
            raise SettingError(f"{where}: inputs have values that are not finite.")
    return inputs, labels.float() if labels.is_floating_point() else labels.long()


def _factory(text: str, shape: tuple[int, ...], num_classes: int | None) -> Callable[[], nn.Module]:
    """Return what makes the network that `text` names."""
    where = f"--model = {text!r}"
    if ":" not in text:
        from ht_ray.vision import ModelConfig, make_model

        if text not in NETWORKS:
            hint = did_you_mean(text, NETWORKS)
            raise SettingError(f"{where}: accepted are {', '.join(NETWORKS)}, and my_package.my_module:function.{hint}")
        if len(shape) != 3 or num_classes is None:
            raise SettingError(f"{where}: it takes images with classes, (N, C, H, W), and the inputs are (N, {shape}).")
        # Fresh ones differ, as `diagnose` seeds the global generator.
        return lambda: make_model(
            ModelConfig(text),
            shape=(shape[0], shape[1], shape[2]),
            num_classes=num_classes,
            seed=int(torch.randint(2**31, ())),
        )
    found = load_part("", "--model", text)
    given = {"shape": shape, "num_classes": num_classes}
    try:
        accepted = inspect.signature(found).parameters
        inspect.signature(found).bind(**{key: value for key, value in given.items() if key in accepted})
    except (TypeError, ValueError) as error:
        raise SettingError(
            f"{where}: accepted is a function of shape and num_classes, or of nothing ({error})."
        ) from error

    def make() -> nn.Module:
        network = found(**{key: value for key, value in given.items() if key in accepted})
        if not isinstance(network, nn.Module):
            raise SettingError(f"{where}: it returns {type(network).__name__}, and should return a torch.nn.Module.")
        return network

    return make


def _load(model: nn.Module, path: str) -> None:
    where = f"--checkpoint = {path!r}"
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise SettingError(f"{where}: it cannot be read ({_first_line(error)}).") from error
    wanted = set(model.state_dict())
    while isinstance(found, Mapping) and not wanted & set(found):
        inner = next((found[key] for key in INSIDE if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping):
        raise SettingError(f"{where}: accepted is a state dict, as torch.save(network.state_dict(), path) writes it.")
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise SettingError(f"{where}: its weights are not those of the network: {text[:300]}") from error


def _first_line(error: Exception) -> str:
    """Return what an error says first: torch advises to load what is not trusted, at length."""
    return (str(error) or type(error).__name__).splitlines()[0].partition(". ")[0].rstrip(".")
