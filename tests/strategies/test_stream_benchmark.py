from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from avalanche.benchmarks.utils import concat_datasets

from ht_ray.errors import SettingError
from ht_ray.vision import ContinualConfig, ImageData, Normalise, Stream, make_stream
from strategies import ImagePool, PoolDataset, stream_benchmark


@pytest.fixture
def stream(image_data: ImageData) -> Stream:
    config = ContinualConfig(phases=3, epochs=1, access="buffer", buffer_size=12)
    return make_stream(image_data.train_labels, 3, config, seed=1)


def test_experiences_are_the_phases(image_data, stream) -> None:
    benchmark = stream_benchmark(image_data, stream)
    normalise = Normalise(image_data.mean, image_data.std)
    assert len(benchmark.train_stream) == 3
    for index, (phase, experience) in enumerate(zip(stream, benchmark.train_stream, strict=True)):
        items = list(experience.dataset)
        assert experience.current_experience == index
        assert [label for _, label, _ in items] == phase.labels.tolist()
        assert {task for _, _, task in items} == {0}
        assert torch.equal(torch.stack([x for x, _, _ in items]), normalise(image_data.train_images[phase.indices]))
        assert list(experience.dataset.targets) == phase.labels.tolist()
        assert set(experience.classes_in_this_experience) == set(phase.labels.tolist())
        assert experience.task_labels == [0]
    (test,) = benchmark.test_stream
    items = list(test.dataset)
    assert [label for _, label, _ in items] == image_data.test_labels.tolist()
    assert torch.equal(torch.stack([x for x, _, _ in items]), normalise(image_data.test_images))


def test_items_are_augmented_in_training_only(image_data, stream) -> None:
    benchmark = stream_benchmark(image_data, stream, augment="crop_flip")
    dataset = benchmark.train_stream[0].dataset
    assert not all(torch.equal(dataset[0][0], dataset[0][0]) for _ in range(5))
    torch.manual_seed(1)
    one = dataset[3][0]
    torch.manual_seed(1)
    assert torch.equal(one, dataset[3][0])
    test = benchmark.test_stream[0].dataset
    assert torch.equal(test[0][0], test[0][0])


def test_unknown_augmentation(image_data, stream) -> None:
    with pytest.raises(SettingError, match="Did you mean 'crop_flip'"):
        stream_benchmark(image_data, stream, augment="cropflip")


def test_pools_are_not_written_and_found_again(image_data, stream) -> None:
    benchmark = stream_benchmark(image_data, stream)
    dataset = benchmark.train_stream[0].dataset
    data = pickle.dumps(PoolDataset(*_parts(dataset)))
    assert len(data) < 20_000 < image_data.train_images.numel() + 20_000
    loaded = pickle.loads(data)
    assert loaded.pool.images is image_data.train_images
    # Another benchmark over the same images that comes and goes takes nothing along.
    other = stream_benchmark(image_data, stream)
    del other
    gc.collect()
    assert pickle.loads(data).pool.images is image_data.train_images
    assert copy.deepcopy(loaded).pool.images is image_data.train_images


def _parts(dataset) -> tuple[ImagePool, torch.Tensor, torch.Tensor]:
    leaf = dataset._flat_data._datasets[0]
    return leaf.pool, leaf.indices, leaf.labels


def test_pools_that_are_gone_are_named() -> None:
    pool = ImagePool(torch.full((3, 1, 2, 2), 7, dtype=torch.uint8), (0.5,), (0.5,))
    data = pickle.dumps(pool)
    assert pickle.loads(data) is pool
    del pool
    gc.collect()
    with pytest.raises(LookupError, match="make the benchmark"):
        pickle.loads(data)


def test_keys_tell_images_and_normalisation_apart() -> None:
    images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    other = images.clone()
    other[3] = 1
    keys = {
        ImagePool(images, (0.5,), (0.5,)).key,
        ImagePool(other, (0.5,), (0.5,)).key,
        ImagePool(images, (0.4,), (0.5,)).key,
        ImagePool(images[:3], (0.5,), (0.5,)).key,
    }
    assert len(keys) == 4
    assert ImagePool(images.clone(), (0.5,), (0.5,)).key in keys


def test_data_sets_concatenate_as_any_other(image_data, stream) -> None:
    benchmark = stream_benchmark(image_data, stream)
    first, second = (experience.dataset for experience in benchmark.train_stream[:2])
    both = concat_datasets([first, second.subset([2, 0])])
    assert len(both) == len(first) + 2
    assert list(both.targets)[-2:] == [int(stream[1].labels[2]), int(stream[1].labels[0])]
