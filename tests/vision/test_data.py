"""Image data sets: what is read equals what was written, and what is damaged is never taken for data."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tarfile
import time
import urllib.error
import warnings
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from hashlib import md5
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ht_ray.errors import SettingError
from ht_ray.vision.data import cache as _cache
from ht_ray.vision.data import sources as _sources
from ht_ray.vision.data.dataset import DATA_SETS, DataConfig, ImageData, image_encoding, load_data

needs_data = pytest.mark.skipif("HT_RAY_DATA" not in os.environ, reason="HT_RAY_DATA names no folder of real images")
REAL = Path(os.environ.get("HT_RAY_DATA", "."))
SUFFIXES = (".tar", ".tar.gz", ".tar.xz", ".zip")
CLASSES = ("ape", "bee", "cat")


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """Keep every test out of the user's cache."""
    folder = tmp_path_factory.mktemp("xdg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "ht-ray"


def encode(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def pictures(shape=(6, 5, 3), per_class=(4, 2), splits=("train", "test"), seed=0) -> dict[str, np.ndarray]:
    """Return random images under the names ``<split>/<class>/<number>.png``, sorted."""
    rng = np.random.default_rng(seed)
    return {
        f"{split}/{label}/{number}.png": rng.integers(0, 256, shape, dtype=np.uint8)
        for split, count in zip(splits, per_class, strict=True)
        for label in CLASSES
        for number in range(count)
    }


def encoded(images: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: encode(pixels) for name, pixels in images.items()}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """Write files as a folder or, by suffix, as an archive."""
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    elif ".tar" in path.name:
        kind = path.suffix[1:]
        with tarfile.open(path, "w:" + ("" if kind == "tar" else kind)) as archive:
            for name, data in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def load(root: Path, name: str = "cifar10", **settings) -> ImageData:
    return load_data(DataConfig(name, root=str(root), download=False, **settings))


def assert_holds(data: ImageData, images: dict[str, np.ndarray], test: str = "test") -> None:
    """Compare with the images that were written, taken in order of name."""
    for split, found, labels in (
        ("train", data.train_images, data.train_labels),
        (test, data.test_images, data.test_labels),
    ):
        names = sorted(name for name in images if name.split("/")[0] == split)
        np.testing.assert_array_equal(found.permute(0, 2, 3, 1).numpy(), np.stack([images[n] for n in names]))
        assert [data.classes[label] for label in labels] == [name.split("/")[1] for name in names]


def assert_equal(one: ImageData, other: ImageData) -> None:
    for field, value in vars(one).items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == getattr(other, field).dtype
            assert torch.equal(value, getattr(other, field)), field
        else:
            assert value == getattr(other, field), field


# --- settings ---


@pytest.mark.slow
def test_importing_costs_torch_only():
    code = (
        "import sys, ht_ray.vision.data.sources, ht_ray.vision.data.cache;"
        "print([m for m in ('torchvision', 'sklearn', 'PIL') if m in sys.modules])"
    )
    # The package's __init__ may import torchvision for other modules' sake: leave it out.
    stub = "import types, sys, ht_ray; p = types.ModuleType('ht_ray.vision');"
    stub += "p.__path__ = [ht_ray.__path__[0] + '/vision']; sys.modules['ht_ray.vision'] = p;"
    stub += "import ht_ray.vision.data.dataset;"
    result = subprocess.run([sys.executable, "-c", stub + code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "tiny_imagenet"}, ["tiny_imagenet", "Did you mean 'tiny-imagenet'?", "DataConfig.name"]),
        ({"name": "cifra10"}, ["Did you mean 'cifar10'?"]),
        ({"name": None}, ["accepted are 'digits'"]),
        ({"root": ""}, ["DataConfig.root = ''"]),
        ({"root": Path("/")}, ["DataConfig.root", "path as text"]),
        ({"cache": " "}, ["DataConfig.cache"]),
        ({"download": 1}, ["DataConfig.download = 1"]),
        ({"train_limit": 0}, ["DataConfig.train_limit = 0", "1 <= train_limit"]),
        ({"test_limit": 2.0}, ["DataConfig.test_limit = 2.0"]),
    ],
)
def test_wrong_settings_are_named(settings, words):
    with pytest.raises(SettingError) as error:
        DataConfig(**settings)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("name", [name for name in DATA_SETS if name != "digits"])
def test_a_root_that_does_not_exist_is_not_created(name, tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(SettingError, match=r"imagse' does not exist\. Did you mean 'images'\?"):
        load_data(DataConfig(name, root=str(tmp_path / "imagse")))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_an_empty_root_lists_what_is_accepted(tmp_path):
    with pytest.raises(SettingError, match=r"cifar-10-batches-py.*train/<class>/<image>"):
        load(tmp_path)
    for root in (None, str(tmp_path)):
        with pytest.raises(SettingError, match=r"tiny-imagenet-200\.zip.*val_annotations\.txt"):
            load_data(DataConfig("tiny-imagenet", root=root))
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    with pytest.raises(SettingError, match=r"x\.rar.*accepted are \.tar, "):
        load(tmp_path / "x.rar")


# --- digits ---


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data = load_data(DataConfig())
    assert data.shape == (1, 8, 8)
    assert data.num_classes == 10
    assert data.classes == tuple("0123456789")
    assert Counter(data.test_labels.tolist()) == dict.fromkeys(range(10), 36)
    reference = load_digits()
    scaled = np.floor(reference.images * 255 / 16 + 0.5).astype(np.uint8)
    pairs = Counter((image.tobytes(), int(label)) for image, label in zip(scaled, reference.target, strict=True))
    ours = Counter(
        (image.numpy().tobytes(), int(label))
        for images, labels in (
            (data.train_images, data.train_labels),
            (data.test_images, data.test_labels),
        )
        for image, label in zip(images, labels, strict=True)
    )
    assert ours == pairs
    # Independent of the global generators, and fixed: a change of the split would change every published number.
    torch.manual_seed(5)
    assert_equal(load_data(DataConfig()), data)
    assert md5(data.test_images.numpy().tobytes()).hexdigest() == "898179abcf830b751a8c99987f94ea07"


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 1437), st.integers(1, 1437))
def test_limits_are_balanced_and_nested(one, other):
    small, large = (load_data(DataConfig(train_limit=n)) for n in sorted((one, other)))
    counts = torch.bincount(small.train_labels, minlength=10)
    if len(small.train_labels) <= 1300:  # 174 - 36 images of the rarest class
        assert counts.max() - counts.min() <= 1
    images = [Counter(image.numpy().tobytes() for image in data.train_images) for data in (small, large)]
    assert images[0] <= images[1]
    assert len(small.test_labels) == 360


def test_a_full_limit_changes_nothing_and_a_larger_one_is_refused():
    assert_equal(load_data(DataConfig(train_limit=1437, test_limit=360)), load_data(DataConfig()))
    with pytest.raises(SettingError, match=r"test_limit = 361: the set has 360 test images"):
        load_data(DataConfig(test_limit=361))


# --- layouts ---


@pytest.mark.parametrize("suffix", ["", *SUFFIXES])
def test_every_layout_gives_the_images_that_were_written(suffix, tmp_path):
    images = pictures()
    data = load(pack(tmp_path / f"set{suffix}", encoded(images)))
    assert data.shape == (3, 6, 5)
    assert data.classes == CLASSES
    assert_holds(data, images)
    pixels = data.train_images.numpy() / 255.0
    np.testing.assert_allclose(data.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std((0, 2, 3)), rtol=1e-12)
    assert repr(data) == "ImageData('cifar10': 12 train and 6 test images of 3x6x5, 3 classes)"


def test_a_folder_reads_as_torchvision_reads_it(tmp_path):
    from torchvision.datasets import ImageFolder

    data = load(pack(tmp_path / "set", encoded(pictures())))
    folder = ImageFolder(str(tmp_path / "set" / "train"))
    assert data.classes == tuple(folder.classes)
    assert data.train_labels.tolist() == folder.targets
    for image, (reference, _) in zip(data.train_images, folder, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), np.asarray(reference))


@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_order_leading_folder_and_other_files_make_no_difference(suffix, tmp_path):
    images = pictures(splits=("train", "val"))
    files = {f"./set-200/{name}": data for name, data in reversed(encoded(images).items())}
    files |= {
        "set-200/README.txt": b"",
        "set-200/logo.png": b"no image",
        "set-200/train/ape/ape_boxes.txt": b"",
        "set-200/train/ape/._0.png": b"",
        "__MACOSX/set-200/train/ape/0.png": b"",
        "../train/ape/9.png": b"",
    }
    assert_holds(load(pack(tmp_path / f"set{suffix}", files)), images, test="val")


@pytest.mark.parametrize("suffix", ["", ".zip", ".tar.gz"])
def test_tiny_imagenets_own_layout(suffix, tmp_path):
    images = pictures(splits=("train", "val"))
    files, lines = {}, []
    for name, data in encoded(images).items():
        split, label, file = name.split("/")
        if split == "train":
            files[f"train/{label}/images/{label}_{file}"] = data
        else:
            files[f"val/images/{label}_{file}"] = data
            lines.append(f"{label}_{file}\t{label}\t0\t0\t5\t5\n")
    files["test/images/test_0.png"] = b"these have no classes and are not decoded"
    files["val/val_annotations.txt"] = "".join(reversed(lines)).encode()
    data = load(pack(tmp_path / f"tiny-imagenet-200{suffix}", files), "tiny-imagenet")
    assert_holds(data, images, test="val")
    files["val/val_annotations.txt"] = "".join(lines[1:]).encode()
    with pytest.raises(SettingError, match=r"ape_0\.png has no class"):
        load(pack(tmp_path / f"broken{suffix}", files), "tiny-imagenet")
    files["val/val_annotations.txt"] = b"ape_0.png ape\n"
    with pytest.raises(SettingError, match="expected lines"):
        load(pack(tmp_path / f"spaces{suffix}", files), "tiny-imagenet")


def test_an_archive_is_found_by_the_name_of_its_data_set(tmp_path):
    images = pictures()
    for name in ("cifar100.tar", "cifar10_no_suffix", "my-cifar10.tar"):
        pack(tmp_path / name, {"x": b""})
    with pytest.raises(SettingError, match="holds no 'cifar10'"):
        load(tmp_path)
    pack(tmp_path / "cifar10-small.tar.xz", encoded(images))
    assert_holds(load(tmp_path), images)
    pack(tmp_path / "cifar10.zip", encoded(images))
    with pytest.raises(SettingError, match=r"several archives .* cifar10-small\.tar\.xz, cifar10\.zip"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", ["", ".tar.xz", ".zip"])
@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("PNG", {}, "PNG"),
        ("JPEG", {"quality": 75}, "JPEG, quality 75"),
        ("JPEG", {"quality": 30}, "JPEG, quality 30"),
        ("JPEG", {"qtables": [[7] * 64, [7] * 64]}, "JPEG"),  # none of libjpeg's own tables
    ],
)
def test_the_encoding_is_that_of_the_images(suffix, kind, options, expected, tmp_path):
    files = {name: encode(pixels, kind, **options) for name, pixels in pictures().items()}
    root = pack(
        tmp_path / f"set{suffix}", {name.rsplit(".", 1)[0] + f".{kind.lower()}": d for name, d in files.items()}
    )
    assert image_encoding(DataConfig("cifar10", root=str(root))) == expected


def test_images_without_an_encoding_are_refused(tmp_path):
    with pytest.raises(SettingError, match="holds no images"):
        image_encoding(DataConfig("cifar10", root=str(pack(tmp_path / "set.tar", {"train/cat/a.txt": b"x"}))))
    broken = pack(tmp_path / "broken", {"train/cat/a.png": b"x"})
    with pytest.raises(SettingError, match=r"a\.png cannot be decoded"):
        image_encoding(DataConfig("cifar10", root=str(broken)))
    cut = pack(tmp_path / "cut.tar.gz", encoded(pictures()))
    os.truncate(cut, 20)
    with pytest.raises(SettingError, match="truncated or corrupt"):
        image_encoding(DataConfig("cifar10", root=str(cut)))


@pytest.mark.parametrize("suffix", [".tar.bz2", ".tbz2", ".txz", ".7z"])
def test_archives_of_other_kinds_are_refused(suffix, tmp_path):
    (tmp_path / f"cifar10{suffix}").write_bytes(b"x")
    with pytest.raises(SettingError, match=r"a file of this kind is not read; accepted are \.tar, .*\.zip"):
        load(tmp_path / f"cifar10{suffix}")


def test_an_xz_file_of_several_streams_is_read_whole(tmp_path):
    import lzma

    whole = pack(tmp_path / "one.tar", encoded(pictures())).read_bytes()
    parts = [lzma.compress(whole[:5000]), lzma.compress(whole[5000:])]
    (tmp_path / "two.tar.xz").write_bytes(b"".join(parts))
    assert_holds(load(tmp_path / "two.tar.xz"), pictures())


def test_grey_images_become_rgb_in_a_colour_set_and_mnist_stays_grey(tmp_path):
    images = pictures(shape=(6, 5))
    folder = pack(tmp_path / "set", encoded(images))
    grey = load(folder, "mnist")
    assert grey.shape == (1, 6, 5)
    colour = load(folder, "cifar10")
    assert colour.shape == (3, 6, 5)
    for channel in range(3):
        assert torch.equal(colour.train_images[:, channel], grey.train_images[:, 0])
    # Grey values that somebody saved as RGB are grey; colours are not.
    name = "train/ape/0.png"
    (folder / name).write_bytes(encode(np.repeat(images[name][..., None], 3, axis=2)))
    os.utime(folder / name, (1, 1))
    with pytest.warns(RuntimeWarning, match="changed"):
        assert torch.equal(load(folder, "mnist").train_images, grey.train_images)
    with pytest.raises(SettingError, match=r"train/ape/0\.png is a colour image"):
        load(pack(tmp_path / "colours", encoded(pictures())), "mnist")


def broken_sets() -> dict[str, tuple[dict[str, bytes], str]]:
    files = encoded(pictures())
    small = encode(np.zeros((5, 5, 3), np.uint8))
    deep = encode(np.zeros((6, 5), np.uint16))
    return {
        "size": (files | {"train/bee/1.png": small}, r"train/bee/1\.png is 5x5.*train/ape/0\.png is 6x5"),
        "size in the test set": (files | {"test/cat/1.png": small}, r"test/cat/1\.png is 5x5"),
        "no image": (files | {"train/bee/1.png": b"<html>"}, r"train/bee/1\.png cannot be decoded"),
        "half an image": (files | {"train/bee/1.png": files["train/bee/1.png"][:90]}, r"1\.png cannot be decoded"),
        "16 bits": (files | {"train/bee/1.png": deep}, r"train/bee/1\.png has mode 'I;16'.*8 bits"),
        "stray image": (files | {"train/1.png": small}, r"'train/1\.png' is an image outside"),
        "deep image": (files | {"train/bee/x/1.png": small}, "'train/bee/x/1.png' is an image outside"),
        "new class": (files | {"test/dog/1.png": small}, "test classes without a train image: 'dog'"),
        "twice": (files | {"train/bee/images/1.png": small}, r"train/bee/(images/)?1\.png twice"),
        "no test": ({n: d for n, d in files.items() if n.startswith("train")}, "holds no test images"),
        "no train": (
            {n: d for n, d in files.items() if n.startswith("test")} | {"train/x.txt": b""},
            "holds no train images",
        ),
    }


@pytest.mark.parametrize("suffix", ["", ".tar.gz", ".zip"])
@pytest.mark.parametrize("fault", broken_sets())
def test_what_is_wrong_in_a_set_is_named(fault, suffix, tmp_path, home):
    files, message = broken_sets()[fault]
    with pytest.raises(SettingError, match=message) as refused:
        load(pack(tmp_path / f"set{suffix}", files))
    assert str(tmp_path / f"set{suffix}") in str(refused.value)
    assert not list(home.rglob("*.tensors"))


def test_links_encryption_and_two_places_are_refused(tmp_path):
    files = encoded(pictures())
    with tarfile.open(pack(tmp_path / "links.tar", files), "a") as archive:
        link = tarfile.TarInfo("train/ape/link.png")
        link.type, link.linkname = tarfile.LNKTYPE, "train/ape/0.png"
        archive.addfile(link)
    with pytest.raises(SettingError, match=r"train/ape/link\.png is a link"):
        load(tmp_path / "links.tar")
    with pytest.raises(SettingError, match=r"several places: 'a', 'b'"):
        load(pack(tmp_path / "two.zip", {("a/" if "train" in n else "b/") + n: d for n, d in files.items()}))
    content = bytearray(pack(tmp_path / "locked.zip", files).read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    with pytest.raises(SettingError, match="is encrypted"):
        load(tmp_path / "locked.zip")


# --- damage ---


@pytest.fixture(scope="module", params=SUFFIXES)
def archive(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    return pack(folder / f"set{request.param}", encoded(pictures(shape=(4, 4, 3), per_class=(2, 1))))


def reads_or_refuses(archive: Path, content: bytes) -> bool:
    """Return whether damaged content gives the whole data; fail unless it does or is refused."""
    path = archive.with_name(f"damaged{archive.name}")
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            data = load(path)
        except SettingError as error:
            assert str(path) in str(error)
            return False
    assert_holds(data, pictures(shape=(4, 4, 3), per_class=(2, 1)))
    return True


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_archive_is_refused(archive, share):
    content = archive.read_bytes()
    cut = int(share * len(content))
    whole = reads_or_refuses(archive, content[:cut])
    if archive.suffix == ".tar":  # blocks of zeros, of which one suffices, end the archive
        assert whole == (cut >= -(-len(content.rstrip(b"\0")) // 512) * 512 + 512)
    else:
        assert not whole


def test_a_member_hidden_from_a_zips_directory_is_missed(tmp_path):
    content = bytearray(pack(tmp_path / "set.zip", encoded(pictures())).read_bytes())
    # The length of the comment of the last entry but one, which then swallows the last entry.
    content[content.rindex(b"PK\x01\x02", 0, content.rindex(b"PK\x01\x02")) + 33] ^= 1
    (tmp_path / "set.zip").write_bytes(content)
    with pytest.raises(SettingError, match="17 members are listed, the end record says 18"):
        load(tmp_path / "set.zip")


def test_the_last_and_first_bytes_count(archive):
    content = archive.read_bytes()
    if archive.suffix != ".tar":
        assert not any(reads_or_refuses(archive, content[:-cut]) for cut in range(1, 40))
    assert not any(reads_or_refuses(archive, content[:cut]) for cut in range(5))
    assert not reads_or_refuses(archive, b"<!DOCTYPE html>" + bytes(2000))


def test_a_truncated_archive_says_so(archive):
    path = archive.with_name(f"half{archive.name}")
    path.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(SettingError, match=r"half.* is truncated or corrupt \(.*\)\. Copy or download it again"):
        load(path)


@settings(max_examples=80, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_never_changes_the_data(archive, share, bit):
    content = bytearray(archive.read_bytes())
    position = int(share * len(content))
    if archive.suffix == ".tar":  # tar has checksums for headers only
        position = position // 512 * 512
        if content[position : position + 5] not in (b"train", b"test/"):
            return
    content[position] ^= 1 << bit
    reads_or_refuses(archive, bytes(content))


# --- cache ---


def cache_file(home: Path) -> Path:
    (file,) = (home / "decoded").iterdir()
    return file


def test_the_second_load_comes_from_the_cache(tmp_path, home, monkeypatch):
    root = pack(tmp_path / "set.tar.gz", encoded(pictures()))
    first = load(root)
    assert cache_file(home).name.startswith("cifar10-")
    monkeypatch.setattr("ht_ray.vision.data.sources._archive_files", lambda path: pytest.fail("decoded again"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = load(root)
    assert_equal(first, second)
    # Limits are applied to what is cached, and writing to the tensors does not reach the file.
    assert len(load(root, train_limit=5).train_labels) == 5
    second.train_images.zero_()
    assert_equal(load(root), first)


def test_caches_of_other_sets_sources_and_folders_are_apart(tmp_path, home):
    images = [pictures(shape=(6, 5), seed=seed) for seed in (1, 2)]
    roots = [pack(tmp_path / f"{seed}.zip", encoded(one)) for seed, one in enumerate(images)]
    for root, one in zip(roots * 2, images * 2, strict=True):
        np.testing.assert_array_equal(load(root, "mnist").train_images[0, 0], one["train/ape/0.png"])
    assert load(roots[0], "cifar10").shape[0] == 3
    assert len(list((home / "decoded").iterdir())) == 3
    load(roots[0], cache=str(tmp_path / "new" / "cache"))
    assert len(list((tmp_path / "new" / "cache").iterdir())) == 1


@pytest.mark.parametrize("suffix", ["", ".tar"])
def test_a_changed_source_is_decoded_again(suffix, tmp_path):
    root = tmp_path / f"set{suffix}"
    load(pack(root, encoded(pictures())))
    changed = pictures(seed=1)
    pack(root, encoded(changed))
    for path in [root, *root.rglob("*.png")]:
        os.utime(path, (2e9, 2e9))
    with pytest.warns(RuntimeWarning, match="images have changed.*decoding again") as caught:
        assert_holds(load(root), changed)
    assert caught[0].filename == __file__
    if not suffix:
        (root / "train/ape/9.png").write_bytes(encode(changed["train/ape/0.png"]))
        with pytest.warns(RuntimeWarning, match="changed"):
            assert len(load(root).train_labels) == 13
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(root)


def test_damage_to_the_cache_is_found_and_repaired(tmp_path, home):
    root = pack(tmp_path / "set.zip", encoded(pictures()))
    load(root)
    file = cache_file(home)
    sound = file.read_bytes()

    @settings(max_examples=100, deadline=None)
    @given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), truncate=st.booleans())
    def check(share, bit, truncate):
        content = bytearray(sound)
        position = int(share * len(content))
        content[position] ^= 1 << bit
        file.unlink()
        file.write_bytes(content[:position] if truncate else content)
        with pytest.warns(RuntimeWarning, match="damaged"):
            assert_holds(load(root), pictures())
        assert file.read_bytes() == sound

    check()
    file.unlink()
    file.write_bytes(sound + b"\0")
    with pytest.warns(RuntimeWarning, match="length is wrong"):
        load(root)


def test_a_cache_of_another_format_is_replaced(tmp_path, home, monkeypatch):
    root = pack(tmp_path / "set.zip", encoded(pictures()))
    with monkeypatch.context() as patch:
        patch.setattr(_cache, "_FORMAT", 0)
        load(root)
    with pytest.warns(RuntimeWarning, match="format 0, this version reads 1"):
        assert_holds(load(root), pictures())


def test_without_a_writable_cache_there_is_a_warning_and_data(tmp_path):
    root = pack(tmp_path / "set.zip", encoded(pictures()))
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"cannot be written.*set DataConfig\.cache") as caught:
        assert_holds(load(root, cache=str(tmp_path / "file" / "cache")), pictures())
    assert [w.filename for w in caught] == [__file__]


def test_a_failed_write_leaves_nothing_behind(tmp_path, home, monkeypatch):
    root = pack(tmp_path / "set.zip", encoded(pictures()))

    def full(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.warns(RuntimeWarning, match="No space left"):
            assert_holds(load(root), pictures())
    assert list((home / "decoded").iterdir()) == []


def test_many_writers_and_readers_of_one_file(tmp_path):
    path = tmp_path / "one.tensors"

    def work(number: int) -> None:
        for _ in range(20):
            _cache.write(path, {"path": "x"}, {"a": torch.full((5000,), number)}, {"b": number})
            tensors, notes = _cache.read(path, {"path": "x"})
            assert torch.equal(tensors["a"], torch.full((5000,), notes["b"]))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert [file.name for file in tmp_path.iterdir()] == ["one.tensors"]


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=5),
        st.tuples(
            st.sampled_from([torch.uint8, torch.int64, torch.float32, torch.bool, torch.int16]),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        max_size=5,
    )
)
def test_the_cache_returns_any_tensors(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("cache") / "x.tensors"
    tensors = {name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in table.items()}
    _cache.write(path, {"é": [1, None]}, tensors, {"n": ["ü"]})
    found, notes = _cache.read(path, {"é": [1, None]})
    assert notes == {"n": ["ü"]}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


# --- arrays ---


def test_arrays_survive_the_object_store_without_a_copy_or_a_warning():
    data = load_data(DataConfig())
    arrays = data.to_arrays()
    assert arrays["train_images"].ctypes.data == data.train_images.data_ptr()
    json.dumps({k: v for k, v in arrays.items() if not isinstance(v, np.ndarray)})
    # What Ray does: arrays out of band, into memory that is read-only.
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(arrays, protocol=5, buffer_callback=buffers.append)
    arrays = pickle.loads(content, buffers=[bytes(b.raw()) for b in buffers])
    assert not arrays["train_images"].flags.writeable
    # torch gives this warning once per process unless told otherwise.
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            back = ImageData.from_arrays(arrays)
    finally:
        torch.set_warn_always(False)
    assert back.train_images.data_ptr() == arrays["train_images"].ctypes.data
    assert_equal(back, data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": torch.zeros(1437, 1, 8, 8)}, "train_images: expected uint8"),
        ({"test_images": torch.zeros(360, 1, 8, 9, dtype=torch.uint8)}, r"test_images: expected uint8 \(N, 1, 8, 8\)"),
        ({"test_labels": torch.zeros(359, dtype=torch.int64)}, r"test_labels: expected int64 \(360,\)"),
        ({"train_labels": torch.full((1437,), 10)}, "expected 0 to 9"),
        ({"std": (1.0, 1.0)}, "each of 1 channels"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    fields = vars(load_data(DataConfig()))
    with pytest.raises(SettingError, match=message):
        ImageData(**(fields | change))


def test_a_constant_channel_can_be_divided_by(tmp_path):
    images = pictures()
    for pixels in images.values():
        pixels[..., 2] = 51
    data = load(pack(tmp_path / "set.zip", encoded(images)))
    assert data.mean[2] == pytest.approx(0.2)
    assert data.std[2] == 1.0


# --- torchvision ---


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def write_mnist(root: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    (root / "MNIST" / "raw").mkdir(parents=True)
    for split, count in (("train", 40), ("t10k", 20)):
        arrays[f"{split}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        (root / "MNIST" / "raw" / name).write_bytes(idx(array))
    return arrays


@pytest.mark.parametrize("download", [True, False])
def test_mnist_files_are_read_and_need_no_cache(download, tmp_path, home):
    arrays = write_mnist(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_data(DataConfig("mnist", root=str(tmp_path), download=download))
    assert data.classes == tuple("0123456789")
    np.testing.assert_array_equal(data.train_images[:, 0], arrays["train-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.test_images[:, 0], arrays["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(data.train_labels, arrays["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(data.test_labels, arrays["t10k-labels-idx1-ubyte"])
    assert not home.exists()


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
@pytest.mark.parametrize("cut", [0, 2, 6, 21, -1])
def test_truncated_mnist_files_are_refused(name, cut, tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "MNIST" / "raw" / name
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(SettingError, match="'mnist' could not be read"):
        load(tmp_path, "mnist")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_files_are_read(name, tmp_path, monkeypatch):
    from torchvision import datasets

    reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    key = "labels" if name == "cifar10" else "fine_labels"
    rng = np.random.default_rng(0)
    folder = tmp_path / reader.base_folder
    folder.mkdir()
    splits = {}

    def store(file: str, content: dict) -> list[str]:
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, md5((folder / file).read_bytes()).hexdigest()]

    for field in ("train_list", "test_list"):
        files = []
        for file, _ in getattr(reader, field):
            rows = rng.integers(0, 256, (6, 3072), dtype=np.uint8)
            splits.setdefault(field, []).append(rows)
            files.append(store(file, {"data": rows, key: [0, 1, 2, 2, 1, 0]}))
        monkeypatch.setattr(reader, field, files)
    meta = dict(reader.meta)
    meta["md5"] = store(meta["filename"], {meta["key"]: list(CLASSES)})[1]
    monkeypatch.setattr(reader, "meta", meta)
    data = load(tmp_path, name)
    # A row is the red plane, then the green, then the blue, each by rows (the data sets' own description).
    np.testing.assert_array_equal(data.train_images.flatten(1), np.concatenate(splits["train_list"]))
    np.testing.assert_array_equal(data.test_images.flatten(1), np.concatenate(splits["test_list"]))
    assert data.test_labels.tolist() == [0, 1, 2, 2, 1, 0]
    assert data.classes == CLASSES
    (folder / meta["filename"]).write_bytes(b"")
    with pytest.raises(SettingError, match=f"{name!r} could not be read"):
        load(tmp_path, name)


def test_downloads_go_to_the_default_folder_and_failures_are_explained(tmp_path, home, monkeypatch):
    from torchvision import datasets

    asked = []

    def download(self):
        asked.append(Path(self.root))
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(datasets.MNIST, "download", download)
    for root in (None, str(tmp_path)):
        with pytest.raises(SettingError, match=r"no route to host.*set DataConfig\.root"):
            load_data(DataConfig("mnist", root=root))
    with pytest.raises(SettingError, match=r"or set DataConfig\.download"):
        load_data(DataConfig("mnist", root=str(tmp_path), download=False))
    assert asked == [home / "data", tmp_path]


# --- real images ---


@needs_data
@pytest.mark.data
def test_real_mnist():
    data = load(REAL, "mnist")
    for split, images, labels, count in (
        ("train", data.train_images, data.train_labels, 60000),
        ("t10k", data.test_images, data.test_labels, 10000),
    ):
        raw = (REAL / "MNIST" / "raw" / f"{split}-images-idx3-ubyte").read_bytes()
        pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(count, 1, 28, 28)
        np.testing.assert_array_equal(images, pixels)
        raw = (REAL / "MNIST" / "raw" / f"{split}-labels-idx1-ubyte").read_bytes()
        np.testing.assert_array_equal(labels, np.frombuffer(raw, np.uint8, offset=8))
    assert data.mean[0] == pytest.approx(0.1307, abs=1e-4)
    assert data.std[0] == pytest.approx(0.3081, abs=1e-4)


@needs_data
@pytest.mark.data
def test_a_truncated_real_archive_is_refused_at_once(tmp_path):
    source = REAL / "cifar10.tar.xz"
    shutil.copyfile(source, tmp_path / source.name)
    os.truncate(tmp_path / source.name, source.stat().st_size - 1000)
    start = time.perf_counter()
    with pytest.raises(SettingError, match="truncated or corrupt"):
        load(tmp_path)
    assert time.perf_counter() - start < 1


@needs_data
@pytest.mark.data
@pytest.mark.slow
def test_real_cifar10_decodes_once_and_loads_fast():
    data = load(REAL, "cifar10")
    assert data.shape == (3, 32, 32)
    assert torch.bincount(data.train_labels).tolist() == [5000] * 10
    assert torch.bincount(data.test_labels).tolist() == [1000] * 10
    assert data.classes[0] == "airplane"
    # The published statistics are 0.4914, 0.4822, 0.4465 and 0.2470, 0.2435, 0.2616; JPEG smooths a little.
    np.testing.assert_allclose(data.mean, (0.4914, 0.4822, 0.4465), atol=1e-3)
    np.testing.assert_allclose(data.std, (0.2470, 0.2435, 0.2616), atol=3e-3)
    start = time.process_time()
    again = load(REAL, "cifar10")
    assert time.process_time() - start < 2
    assert_equal(again, data)


@needs_data
@pytest.mark.data
@pytest.mark.slow
def test_real_tiny_imagenet_matches_pillow_image_by_image():
    data = load(REAL, "tiny-imagenet")
    assert data.shape == (3, 64, 64)
    assert torch.bincount(data.train_labels).tolist() == [50] * 200
    assert torch.bincount(data.test_labels).tolist() == [10] * 200
    with tarfile.open(REAL / "tiny-imagenet-mini.tar.xz") as archive:
        names = sorted(m.name for m in archive if m.isfile() and m.name.startswith("val/"))
        for index in range(0, len(names), 100):
            with Image.open(archive.extractfile(names[index])) as image:
                pixels = np.asarray(image.convert("RGB"))
            np.testing.assert_array_equal(data.test_images[index].permute(1, 2, 0), pixels)


# --- files that are no images ---


def sizes(monkeypatch: pytest.MonkeyPatch, *, file: int = 1 << 26, all_: int = 1 << 35, header: int = 1 << 20) -> None:
    monkeypatch.setattr(_sources, "_MOST_OF_FILE", file)
    monkeypatch.setattr(_sources, "_MOST_OF_ALL", all_)
    monkeypatch.setattr(_sources, "_MOST_OF_HEADER", header)


@pytest.mark.parametrize("suffix", ["", *SUFFIXES])
def test_a_file_and_the_sum_of_all_have_limits(suffix, tmp_path, monkeypatch):
    files = encoded(pictures())
    path = pack(tmp_path / f"set{suffix}", {**files, "train/ape/large.png": bytes(9000)})
    sizes(monkeypatch, file=8999)
    with pytest.raises(SettingError, match=r"large\.png.* 9000 bytes; accepted are up to 8999"):
        load(path)
    if suffix:
        sizes(monkeypatch, all_=9000 + sum(map(len, files.values())) - 1)
        with pytest.raises(SettingError, match=r"unpacks to more than \d+ bytes"):
            load(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_an_archive_holds_besides_counts_for_the_sum_only(suffix, tmp_path, monkeypatch):
    files = encoded(pictures())
    path = pack(tmp_path / f"set{suffix}", {**files, "notes.bin": bytes(1 << 20)})
    sizes(monkeypatch, file=9000)
    assert_holds(load(path), pictures())
    sizes(monkeypatch, file=9000, all_=1 << 20)
    shutil.rmtree(path.parent / "cache", ignore_errors=True)
    other = path.rename(path.with_name(f"other{suffix}"))
    with pytest.raises(SettingError, match="unpacks to more than 1048576 bytes"):
        load(other)


def test_images_that_decode_to_too_much_are_refused(tmp_path, monkeypatch):
    path = pack(tmp_path / "set.zip", encoded(pictures(shape=(40, 40, 3))))
    sizes(monkeypatch, all_=18 * 3 * 40 * 40 - 1)
    monkeypatch.setattr(_sources._Measure, "add", lambda self, size, name: None)
    with pytest.raises(SettingError, match="18 images of 40x40"):
        load(path)


def test_a_sparse_member_is_refused_without_being_unpacked(tmp_path):
    # GNU's old format: a megabyte of which nothing is stored.
    path = pack(tmp_path / "set.tar", encoded(pictures()))
    member = tarfile.TarInfo("train/ape/sparse.png")
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"%011o\0" % (1 << 20)  # its size once unpacked
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    content = path.read_bytes().rstrip(b"\0")
    content += bytes(-len(content) % 512)
    path.write_bytes(content + bytes(header) + bytes(1024))
    with pytest.raises(SettingError, match=r"sparse\.png is a link or a special file"):
        load(path)


def test_a_long_header_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("train/ape/" + 4000 * "x"))
    sizes(monkeypatch, header=4000)
    with pytest.raises(SettingError, match="a header of 4"):
        load(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "link"])
def test_special_members_are_refused(kind, tmp_path):
    files = encoded(pictures())
    with tarfile.open(pack(tmp_path / "set.tar", files), "a") as archive:
        special = tarfile.TarInfo("train/ape/special.png")
        special.type = {"pipe": tarfile.FIFOTYPE, "device": tarfile.CHRTYPE, "link": tarfile.SYMTYPE}[kind]
        archive.addfile(special)
    with zipfile.ZipFile(pack(tmp_path / "set.zip", files), "a") as archive:
        info = zipfile.ZipInfo("train/ape/special.png")
        info.external_attr = {"pipe": stat.S_IFIFO, "device": stat.S_IFCHR, "link": stat.S_IFLNK}[kind] << 16
        archive.writestr(info, b"/etc/hostname")
    for suffix in (".tar", ".zip"):
        with pytest.raises(SettingError, match=r"special\.png is a link or a special file"):
            load(tmp_path / f"set{suffix}")


def test_a_pipe_among_files_is_refused_and_not_read(tmp_path):
    folder = pack(tmp_path / "set", encoded(pictures()))
    os.mkfifo(folder / "train" / "ape" / "pipe.png")
    with pytest.raises(SettingError, match=r"pipe\.png is no regular file"):
        load(folder)
    layout = tmp_path / "cifar-10-batches-py"
    layout.mkdir()
    os.mkfifo(layout / "data_batch_1")
    with pytest.raises(SettingError, match="data_batch_1 is no regular file"):
        load(tmp_path)
    (tmp_path / "other").mkdir()
    os.mkfifo(tmp_path / "other" / "cifar10.tar")
    with pytest.raises(SettingError, match="holds no 'cifar10'"):
        load(tmp_path / "other")


def test_links_to_files_are_followed_in_folders(tmp_path):
    images = pictures()
    folder = pack(tmp_path / "set", encoded(images))
    real = folder / "train" / "ape" / "0.png"
    real.rename(tmp_path / "elsewhere.png")
    real.symlink_to(tmp_path / "elsewhere.png")
    assert_holds(load(folder), images)
