"""Networks of timm and data sets of Hugging Face, where these libraries are installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ht_ray.errors import SettingError
from ht_ray.vision import DataConfig, ModelConfig, load_data, make_model
from ht_ray.vision.models.own import check_network


def test_a_network_of_timm_is_drawn_from_the_seed_and_its_head_is_found() -> None:
    pytest.importorskip("timm")
    config = ModelConfig("timm:resnet10t")
    one, same, other = (make_model(config, shape=(1, 32, 32), num_classes=3, seed=seed) for seed in (0, 0, 1))
    check_network(config.name, one, (1, 32, 32), 3)
    assert one.head_name == "fc"
    weights = [dict(net.named_parameters())["fc.weight"] for net in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    with pytest.raises(SettingError, match="Did you mean 'resnet10t'"):
        make_model(ModelConfig("timm:resnet10tt"), shape=(1, 32, 32), num_classes=3, seed=0)


def test_a_set_of_hugging_face_is_read_as_it_was_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    a, kinds = np.arange(20.0), [n % 2 for n in range(20)]
    features = datasets.Features(
        {
            "a": datasets.Value("float64"),
            "b": datasets.Value("int64"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    table = datasets.Dataset.from_dict({"a": a, "b": range(20), "label": kinds}, features=features)
    table.save_to_disk(str(tmp_path / "table"))
    parts = datasets.DatasetDict({"train": table.select(range(15)), "test": table.select(range(15, 20))})
    parts.save_to_disk(str(tmp_path / "parts"))
    data = load_data(DataConfig(str(tmp_path / "parts")))
    assert data.is_table and data.classes == ("no", "yes")
    assert data.train_images[:, 0].tolist() == a[:15].tolist() and data.test_labels.tolist() == kinds[15:]
    assert len(load_data(DataConfig(str(tmp_path / "table"))).test_labels) == 4
    # What is selected, and shuffled, is in another order than the file's.
    table.shuffle(seed=0).train_test_split(0.25, seed=0).save_to_disk(str(tmp_path / "mixed"))
    mixed = load_data(DataConfig(str(tmp_path / "mixed")))
    assert len(mixed.test_labels) == 5
    for part, labels in ((mixed.train_images, mixed.train_labels), (mixed.test_images, mixed.test_labels)):
        assert torch.equal(part[:, 0], part[:, 1]) and torch.equal(part[:, 1].long() % 2, labels)
    numbers = load_data(DataConfig(str(tmp_path / "parts"), label="a", task="regression"))
    assert numbers.is_regression and numbers.shape == (2,)


def test_images_of_a_set_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
    held = datasets.Dataset.from_dict({"image": [Image.fromarray(one) for one in images], "label": [0, 1] * 6})
    parts = datasets.DatasetDict({"train": held.select(range(8)), "validation": held.select(range(8, 12))})
    parts.save_to_disk(str(tmp_path / "images"))
    data = load_data(DataConfig(str(tmp_path / "images")))
    assert data.train_images.numpy().transpose(0, 2, 3, 1).tolist() == images[:8].tolist()
    assert data.test_images.numpy().transpose(0, 2, 3, 1).tolist() == images[8:].tolist()
