"""Start of a study: what passes between the command and the first step that a trial trains.

    python benchmarks/start_up.py [--tries N] [--script NAME] [ARGUMENT ...]

runs ``tune_configs/ablation.py`` (or ``NAME.py``) with the arguments that are given, three times, and ends each run at
its first step. It prints medians: when the driver and the worker of the first step come to each stage, in seconds since
the command, with the processor time that the process has used until then; and what all processes have used until the
first step. A run before the first leaves files read and compiled, and counts for nothing.

The stages are noted by a ``sitecustomize`` that the benchmark puts on the import path of all processes: it looks at
modules as they are imported, and wraps the functions whose beginning or end is a stage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
NOTES = "HT_RAY_START_UP_NOTES"
STEP = "first step of an optimizer"
TOO_LONG = 300.0

#: What is noted before and after a module is executed, or one of its functions is called.
STAGES = {
    "torch": {"": ("", "torch is imported")},
    "ray": {"": ("", "Ray is imported"), "init": ("ray.init begins", "ray.init has ended")},
    "ray.tune": {"": ("", "Tune is imported"), "run": ("tune.run begins", "")},
    "avalanche": {"": ("", "Avalanche is imported")},
    "tune_configs.command_line": {
        "main": ("the script is imported", ""),
        "_run": ("the command line is read", ""),
        "run_study": ("what trials need is loaded and checked", ""),
    },
    "ht_ray.sweep.worker.trainable": {
        "": ("", "the trainable is imported"),
        "StudyTrainable.setup": ("the plan arrives", ""),
    },
    "tune_configs.vision_trial": {
        "VisionTrial.__init__": ("the trial is to be built", "the trial is built"),
        "VisionPack.__init__": ("the trial is to be built", "the trial is built"),
    },
    "ht_ray.vision.training.pack": {"_Stack._update": (STEP, "")},
    "torch.optim.optimizer": {},
}

SITE = f"""
import functools, importlib.machinery, json, os, sys, time

SEEN = set()

def note(stage):
    if stage and stage not in SEEN:
        SEEN.add(stage)
        line = {{"pid": os.getpid(), "stage": stage, "time": time.time(), "cpu": time.process_time()}}
        with open(os.environ[{NOTES!r}], "a") as file:
            file.write(json.dumps(line) + "\\n")

def wrapped(function, before, after):
    @functools.wraps(function)
    def call(*args, **kwargs):
        note(before)
        try:
            return function(*args, **kwargs)
        finally:
            note(after)
    return call

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in STAGES else None
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def executed(module):
            before, after = STAGES[name].get("", ("", ""))
            note(before)
            execute(module)
            note(after)
            if name == "torch.optim.optimizer":
                module.register_optimizer_step_pre_hook(lambda *_: note({STEP!r}))
            for one, stages in STAGES[name].items():
                if one:
                    *owners, attribute = one.split(".")
                    owner = functools.reduce(getattr, owners, module)
                    setattr(owner, attribute, wrapped(getattr(owner, attribute), *stages))

        spec.loader.exec_module = executed
        return spec

STAGES = {STAGES!r}
sys.meta_path.insert(0, Finder)
note("the process runs Python")
"""


class Run(NamedTuple):
    """What was seen of one run."""

    driver: dict[str, tuple[float, float]]
    """Seconds since the command and processor seconds, by stage."""
    worker: dict[str, tuple[float, float]]
    used: dict[str, float]
    """Processor seconds until the first step, by what kind of process used them."""


def processes(notes: Path) -> Iterator[tuple[str, float]]:
    """Yield the kind of each process of the run, and its processor seconds, those of ended children included."""
    mark = f"{NOTES}={notes}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark not in (path / "environ").read_bytes().split(b"\0"):
                continue
            times = (path / "stat").read_text().rpartition(")")[2].split()[11:15]
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            yield kind_of(command), sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def kind_of(command: str) -> str:
    kinds = {
        "gcs_server": "Ray's control store",
        "raylet/raylet": "raylet",
        "dashboard/agent.py": "Ray's dashboard agent",
        "runtime_env/agent": "Ray's runtime environment agent",
        "log_monitor": "Ray's log monitor",
        "monitor.py": "Ray's monitor",
        "dashboard": "Ray's dashboard",
        "ray::DashboardAgent": "Ray's dashboard agent",
        "ray::RuntimeEnvAgent": "Ray's runtime environment agent",
        "ray::": "workers",
        "default_worker.py": "workers",
        "tune_configs": "driver",
    }
    return next((kind for part, kind in kinds.items() if part in command), command[:60])


def measure(script: str, arguments: list[str]) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder, "notes.jsonl")
        notes.touch()
        Path(folder, "sitecustomize.py").write_text(SITE)
        path = os.pathsep.join(filter(None, [folder, str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, NOTES: str(notes)}
        command = [sys.executable, str(ROOT / "tune_configs" / f"{script}.py"), *arguments]
        with Path(folder, "output.txt").open("w+") as output:
            began = time.time()
            driver = subprocess.Popen(
                [*command, "--results-dir", f"{folder}/study"],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )
            try:
                while STEP not in (text := notes.read_text()):
                    if driver.poll() is not None or time.time() > began + TOO_LONG:
                        output.seek(0)
                        raise SystemExit(f"no trial came to its first step:\n{output.read()}")
                    time.sleep(0.02)
                used: dict[str, float] = defaultdict(float)
                for kind, seconds in processes(notes):
                    used[kind] += seconds
            finally:
                for _ in range(2):  # the second does not wait for the workers
                    if driver.poll() is None:
                        driver.send_signal(signal.SIGINT)
                        time.sleep(1)
                driver.wait(timeout=60)
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    worker = next(line["pid"] for line in lines if line["stage"] == STEP)
    stages: dict[int, dict[str, tuple[float, float]]] = defaultdict(dict)
    for line in lines:
        stages[line["pid"]][line["stage"]] = line["time"] - began, line["cpu"]
    return Run(stages[driver.pid], stages[worker], used)


def show(runs: list[Run]) -> None:
    for title, name in (("driver", "driver"), ("worker of the first step", "worker")):
        print(f"{title:44s}  at (s)  processor (s)")
        seen = [getattr(run, name) for run in runs]
        common = [stage for stage in seen[0] if all(stage in one for one in seen)]
        rows = [(*(statistics.median(one[stage][i] for one in seen) for i in (0, 1)), stage) for stage in common]
        for at, used, stage in sorted(rows):
            print(f"  {stage:42s}  {at:6.2f}  {used:13.2f}")
    print(f"{'processor time of all until then':44s}")
    kinds = sorted({kind for run in runs for kind in run.used})
    for kind in kinds:
        print(f"  {kind:42s}  {'':6s}  {statistics.median(run.used.get(kind, 0.0) for run in runs):13.2f}")
    print(f"  {'all':42s}  {'':6s}  {statistics.median(sum(run.used.values()) for run in runs):13.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--script", default="ablation")
    known, arguments = parser.parse_known_args()
    measure(known.script, arguments)
    show([measure(known.script, arguments) for _ in range(known.tries)])


if __name__ == "__main__":
    main()
