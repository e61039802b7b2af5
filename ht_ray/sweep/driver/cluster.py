"""Cluster that a study runs on: a Ray, how many trials fit on its nodes, and whether they see the study's directory."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ht_ray._checks import refused
from ht_ray._storage import is_uri
from ht_ray.sweep.driver.local_ray import local_ray
from ht_ray.sweep.records.progress import Console
from ht_ray.sweep.storage.location import StudyLocation
from ht_ray.sweep.study.config import GIB, SweepConfig, ray_address
from ht_ray.sweep.study.trial import Study
from ht_ray.sweep.worker import WAITING_WORKERS

__all__ = ["check_shared", "environment", "import_path", "running_ray"]

# A node that has not answered after so many seconds is gone; a busy one may take its time to start a worker.
_NODE_ANSWERS = 60.0
# Seconds after which workers that wait are not waited for.
_WORKERS_WAIT = 60.0


@contextmanager
def running_ray(config: SweepConfig, console: Console, keep_logs: Callable[[], bool], study: Study) -> Iterator[int]:
    """Have Ray running, and yield how many trials of the study fit at a time.

    Workers of a Ray that is started here import what they need for its trials before they are asked to.
    """
    # Under `uv run` Ray would re-create the whole environment for its workers. Read when Ray is imported.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray

    if ray.is_initialized():
        yield _slots(config, ray.nodes())
        return
    address = ray_address(config)
    settings: dict[str, Any] = {"logging_level": logging.ERROR}
    console.say("Starting Ray" if address == "local" else f"Connecting to Ray at {address}")
    if address == "local":
        # Workers of a Ray started here inherit the import path; elsewhere the job's working directory is theirs.
        path = os.pathsep.join(import_path())
        # Ray says how many threads there are when a worker gets its trial, and libraries ask when they are imported.
        # The other is Tune's: https://github.com/ray-project/ray/issues/28197
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, int(config.cpus_per_trial))))
        variables = {"OMP_NUM_THREADS": threads, "PL_DISABLE_FORK": "1", **({"PYTHONPATH": path} if path else {})}
        modules = ["ht_ray.sweep.worker.preload", study.factory.partition(":")[0], "ht_ray.sweep.worker.waiting"]
        settings["_system_config"] = {
            "preload_python_modules": modules,
            # Ray would end them as soon as the trials' resources are set aside.
            "idle_worker_killing_time_threshold_ms": 60_000,
        }
        workers = _waiting_workers(config, study)
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ht-ray-"))
            with environment({**variables, WAITING_WORKERS: folder}):
                stack.enter_context(local_ray(console.say, keep_logs=keep_logs, workers=workers, **settings))
            from ht_ray.sweep.driver.tune_repair import waiting_workers

            stack.enter_context(waiting_workers())
            _wait_for_workers(Path(folder), workers)
            yield _slots(config, ray.nodes())
        return
    try:
        ray.init(address=address, log_to_driver=False, **settings)
    except ConnectionError as error:
        why = (
            ": no Ray cluster can be used there ({error}). A cluster that asks for a token needs "
            "RAY_AUTH_MODE=token, here and there."
        )
        raise refused("SweepConfig.address", address, why, error=error) from error
    try:
        yield _slots(config, ray.nodes())
    finally:
        ray.shutdown()


def _waiting_workers(config: SweepConfig, study: Study) -> int:
    """Return how many workers to start before they are asked for."""
    cpus = os.cpu_count() or 1
    fitting = min(int(cpus / config.cpus_per_trial), config.max_concurrent or len(study.trials), len(study.trials))
    # One CPU is the driver's, which imports Tune meanwhile.
    return min(fitting, max(1, cpus - 1))


def _wait_for_workers(folder: Path, workers: int) -> None:
    """Wait until so many workers have imported what they need; Ray starts others for trials that come before."""
    end = time.monotonic() + _WORKERS_WAIT
    while time.monotonic() < end and sum(1 for _ in folder.iterdir()) < workers:
        time.sleep(0.05)


def _slots(config: SweepConfig, nodes: Sequence[dict[str, Any]]) -> int:
    """Return how many trials fit on the cluster at a time; raise if none ever does."""
    fitting = sum(_fit(config, node) for node in nodes)
    if not fitting and config.autoscaling:
        fitting = 1
    if not fitting:
        needed = ", ".join(f"{name} {amount:g}" for name, amount in config.resources_per_trial.items())
        labels = "".join(f", label {name}={value}" for name, value in config.label_selector.items())
        had = [node for node in nodes if node["Alive"]]
        count = f"{len(had)} node{'s' if len(had) > 1 else ''}"
        why = (
            ", {gpus_per_trial} = {gpus!r}: no node of the cluster has what a trial needs ({needed}). It has "
            "{nodes}. A cluster that adds nodes when trials wait: {SweepConfig.autoscaling}."
        )
        values = {
            "gpus": config.gpus_per_trial,
            "needed": needed + labels,
            "nodes": f"{count} with {'; '.join(_describe(config, node) for node in had)}",
        }
        raise refused("SweepConfig.cpus_per_trial", config.cpus_per_trial, why, **values)
    return min(fitting, config.max_concurrent or fitting)


def _fit(config: SweepConfig, node: dict[str, Any]) -> int:
    """How many trials `node` runs at a time."""
    labels = node.get("Labels", {})
    if not node["Alive"] or any(labels.get(name) != value for name, value in config.label_selector.items()):
        return 0
    has = node["Resources"]
    return min(int(has.get(name, 0) / amount + 1e-9) for name, amount in config.resources_per_trial.items())


def _describe(config: SweepConfig, node: dict[str, Any]) -> str:
    has = node["Resources"]
    text = f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs"
    if config.memory_per_trial is not None:
        text += f", {has.get('memory', 0) / GIB:.3g} GiB"
    for name in config.custom_resources:
        text += f", {name} {has.get(name, 0):g}"
    for name in config.label_selector:
        text += f", label {name}={node.get('Labels', {}).get(name)}"
    return text


def check_shared(config: SweepConfig, location: StudyLocation, console: Console) -> None:
    """Raise if a node that would run trials does not see the study's directory, where their checkpoints go."""
    import ray

    if is_uri(location.name):
        return
    nodes = [node for node in ray.nodes() if _fit(config, node)]
    blind, silent = _nodes_without(location.directory, nodes) if len(nodes) > 1 else ([], [])
    for name in silent:
        console.say(f"{name} does not answer, and is taken for lost")
    if blind:
        why = (
            ": trials would run on {nodes}, where that directory is not seen. Give one on a file system that "
            "all nodes share, or a URI."
        )
        raise refused("SweepConfig.results_dir", location.name, why, nodes=", ".join(blind))


def _nodes_without(
    directory: Path, nodes: Sequence[dict[str, Any]], *, patience: float = _NODE_ANSWERS
) -> tuple[list[str], list[str]]:
    """Return which nodes do not see `directory`, and which did not say: gone, though Ray may not have noticed yet."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from ht_ray.sweep.worker.faults import node_name

    # A function that every Python has.
    sees = ray.remote(num_cpus=0)(os.path.isdir)
    where = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    asked = [sees.options(scheduling_strategy=node, max_retries=0).remote(str(directory)) for node in where]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=patience)
    blind, silent = [], []
    for node, answer in zip(nodes, asked, strict=True):
        name = node_name(node["NodeManagerHostname"], node["NodeID"])
        if answer not in answered:
            ray.cancel(answer, force=True)
            silent.append(name)
            continue
        try:
            if not ray.get(answer):
                blind.append(name)
        except RayError:
            silent.append(name)
    return blind, silent


def import_path() -> tuple[str, ...]:
    """The entries of the driver's import path that do not belong to its Python installation."""
    installed = tuple(str(Path(prefix).resolve()) for prefix in (sys.prefix, sys.base_prefix))
    entries = [Path(entry or ".").resolve() for entry in sys.path]
    own = [str(entry) for entry in entries if entry.is_dir()]
    return tuple(dict.fromkeys(entry for entry in own if not entry.startswith(installed)))


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Have these environment variables set while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
