"""Options and markers of the tests."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "support"))  # what several tests use

# Under `uv run`, Ray would make the environment anew for its workers, in a copy of the working directory.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
# What workers need for the S3 server of the tests, which takes any credentials; they have what Ray was started with.
os.environ.setdefault("AWS_ACCESS_KEY_ID", "testing")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "testing")
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled modules in pytest's cache where Python was told to write none.

    Ray's workers and the command lines would each compile torch, Ray and Avalanche again, which takes most of their
    start.
    """
    if sys.dont_write_bytecode and config.pluginmanager.hasplugin("cacheprovider"):
        sys.pycache_prefix = str(config.cache.mkdir("bytecode"))
        sys.dont_write_bytecode = False
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


# The files that take longest, about 15 s of processor time or more, from the longest on.
_LONGEST = (
    "test_study_runs.py",
    "test_sweep_run.py",
    "test_site.py",
    "test_atari_interruptions.py",
    "test_warm_start.py",
    "test_atari100k.py",
    "test_avalanche.py",
    "test_sweep_damage.py",
    "test_bbf_algorithm.py",
    "test_docs.py",
    "test_notebook.py",
    "test_vision_interruptions.py",
    "test_sweep_search_run.py",
    "test_reproduce.py",
    "test_report_write.py",
    "test_sweep_local_ray.py",
    "test_report_page.py",
    "test_drq_algorithm.py",
    "test_sweep_s3.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    if "PYTEST_XDIST_WORKER" in os.environ:
        # What begins last is short, so that all workers end together.
        places = {name: place for place, name in enumerate(_LONGEST)}
        items.sort(key=lambda item: places.get(item.path.name, len(places)))

    # It joins a Ray of several nodes, which a process can do only before it has the one that tests share.
    items.sort(key=lambda item: item.path.name != "test_sweep_notice.py")

    reasons = {}
    if not config.getoption("--slow"):
        reasons["slow"] = "slow: run with --slow"
    if not os.environ.get("HT_RAY_DATA"):
        reasons["data"] = "needs real image data: set HT_RAY_DATA to the folder that holds it"
    if not torch.cuda.is_available():
        reasons["gpu"] = "needs a CUDA device"
    # Tests with the fixture `device` of tests/gpu can be told to run on another one, to see that they work at all.
    elsewhere = os.environ.get("HT_RAY_TEST_DEVICE", "cuda") != "cuda"
    for item in items:
        for marker, reason in reasons.items():
            if marker == "gpu" and elsewhere and item.path.parent.name == "gpu" and "device" in item.fixturenames:
                continue
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Spare every later collection of garbage the modules and the tests themselves, which stay to the end anyway.

    They are millions of objects, and a worker of a study collects before each of its trials.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A local Ray of two CPUs, shared by all tests; its address."""
    import ray

    from ht_ray.sweep.driver.local_ray import start_ray

    settings = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": False, "log_to_driver": False}
    context = start_ray(lambda: ray.init(address="local", **settings))
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(autouse=True)
def no_methods_are_left() -> Iterator[None]:
    """Forget the methods that a test registers: flags and pages would have them, too."""
    yield
    registry = sys.modules.get("ht_ray.methods.registry")
    if registry is not None:
        for name, cls in list(registry._classes.items()):
            if not cls.__module__.startswith("ht_ray."):
                del registry._classes[name]


@pytest.fixture
def matching_layouts() -> Iterator[list[int]]:
    """Watch every step of every optimiser: its gradients and its state must be laid out in memory as the weights are.

    Torch's fused optimisers read them side by side, and pair them wrongly otherwise, without a word. The list has the
    number of tensors that were compared at each step.
    """
    import torch
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    steps: list[int] = []

    def order(tensor: torch.Tensor) -> list[tuple[int, int]]:
        return [(size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]

    def check(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        compared = 0
        for group in optimizer.param_groups:
            for weights in group["params"]:
                for name, tensor in {"gradient": weights.grad, **optimizer.state.get(weights, {})}.items():
                    if isinstance(tensor, torch.Tensor) and tensor.shape == weights.shape:
                        assert order(tensor) == order(weights), name
                        compared += 1
        steps.append(compared)

    handle = register_optimizer_step_pre_hook(check)
    yield steps
    handle.remove()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
