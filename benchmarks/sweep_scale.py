"""How the sweep grows with the number of trials: trivial trials on simulated nodes, each size in a driver of its own.

    python benchmarks/sweep_scale.py [--trials 200 500 1000 2000] [--nodes 8] [--cpus 1] [--reports 1]
        [--tensorboard trials configurations none] [--json FILE] [--profile FOLDER]

All nodes are Ray's processes on this machine, which also runs the trials; so the driver's processor time per trial
says more than the wall time. With ``--profile`` each driver's functions are timed (cProfile), which slows it.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ht_ray.sweep import Report, Study, SweepConfig, TrialSpec, run_study
from ht_ray.sweep.records.progress import Console, StudyProgress
from ht_ray.sweep.records.results_table import write_results_csv
from ht_ray.sweep.records.trial_record import TrialRecord
from ht_ray.sweep.study.plan import load_plan

SEEDS = 5
# What a row of the table shows: heading, key of the measurement, format.
COLUMNS = [
    ("trials", "trials", "{:d}"),
    ("event files", "tensorboard", "{}"),
    ("wall s", "wall", "{:.1f}"),
    ("wall ms/trial", "wall_per_trial", "{:.1f}"),
    ("driver CPU ms/trial", "cpu_per_trial", "{:.1f}"),
    ("last quarter, ms/trial", "last_quarter", "{:.1f}"),
    ("RSS MB before", "rss_before", "{:.0f}"),
    ("growth MB", "rss_growth", "{:.0f}"),
    ("results MB", "megabytes", "{:.1f}"),
    ("on disk MB", "disk_megabytes", "{:.1f}"),
    ("files", "files", "{:d}"),
    ("objects", "objects", "{:d}"),
    ("object store MB", "object_store", "{:.2f}"),
    ("results.csv ms", "table", "{:.0f}"),
    ("status ms", "status", "{:.1f}"),
    ("report read s", "report_read", "{:.2f}"),
]


class Trivial:
    """Reports `config["reports"]` times without doing anything."""

    def __init__(self, config: dict[str, Any], shared: Any) -> None:
        self._reports = config["reports"]
        self._done = 0

    def advance(self) -> Report:
        self._done += 1
        row = {"step": self._done, "test_accuracy": 0.5, "test_loss": 1.0}
        summary = {"final_accuracy": 0.5, "average_accuracy": 0.5}
        return Report({"epoch": [row], "phase": [row]}, summary, self._done / self._reports, samples=1)

    def save(self, directory: Path) -> None:
        (directory / "done").write_text(str(self._done))

    def load(self, directory: Path) -> None:
        self._done = int((directory / "done").read_text())


def trivial_study(trials: int, reports: int) -> Study:
    specs = []
    for number in range(trials):
        configuration, seed = divmod(number, SEEDS)
        settings = {"method": "trivial", "momentum": configuration / trials, "seed": seed}
        name = f"trivial-m{configuration:05d}-seed{seed}"
        specs.append(TrialSpec(name, f"Trivial m={configuration}", settings, {"reports": reports}))
    return Study("scale", "sweep_scale:Trivial", tuple(specs), "final_accuracy")


class Timed(Console):
    """A console that notes when how many trials were done, and says nothing."""

    def __init__(self) -> None:
        super().__init__(stream=io.StringIO(), every=1.0)
        self.marks: list[tuple[float, int]] = []

    def status(self, lines: Any) -> None:
        first = next(iter(lines))
        self.marks.append((time.process_time(), int(first.split(": ")[1].split(" of ")[0])))
        super().status([first])


def drive(address: str, directory: Path, trials: int, reports: int, tensorboard: str, profile: str | None) -> None:
    """Run one study in this process, and print what it cost as a line of JSON."""
    import logging

    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    # Tune, and what else a study imports, is loaded before anything is measured.
    warm = Study("warm", "sweep_scale:Trivial", trivial_study(8, 1).trials, "final_accuracy")
    run_study(warm, SweepConfig(results_dir=f"{directory}-warm"), console=Timed())
    study, console = trivial_study(trials, reports), Timed()
    rss, cpu, wall = resident(), time.process_time(), time.perf_counter()
    profiler = cProfile.Profile() if profile else None
    if profiler:
        profiler.enable()
    result = run_study(study, SweepConfig(results_dir=str(directory), tensorboard=tensorboard), console=console)
    if profiler:
        profiler.disable()
        profiler.dump_stats(f"{profile}/{trials}-{tensorboard}.prof")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert result.finished == trials, result.describe()
    sizes = [path.stat() for path in directory.rglob("*") if path.is_file()]
    records = [TrialRecord(directory, spec) for spec in load_plan(directory)]
    objects, object_bytes = object_store(address)
    measured = {
        "trials": trials,
        "reports": reports,
        "tensorboard": tensorboard,
        "wall": wall,
        "wall_per_trial": 1000 * wall / trials,
        "cpu_per_trial": 1000 * cpu / trials,
        "last_quarter": last_quarter(console.marks, trials),
        "rss_before": rss / 1e6,
        # What was taken in the meantime counts, too.
        "rss_growth": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - rss / 1e6,
        "megabytes": sum(size.st_size for size in sizes) / 1e6,
        "disk_megabytes": sum(size.st_blocks * 512 for size in sizes) / 1e6,
        "files": len(sizes),
        "objects": objects,
        "object_store": object_bytes / 1e6,
        "table": 1000 * seconds(lambda: write_results_csv(directory, records)),
        "status": 1000 * seconds(StudyProgress("scale", records, "final_accuracy", "max", 8).lines),
        "report_read": seconds(lambda: read_for_report(directory)),
    }
    print(json.dumps(measured), flush=True)
    ray.shutdown()


def last_quarter(marks: list[tuple[float, int]], trials: int) -> float:
    """The driver's milliseconds per trial over the last quarter of the trials: how it is once it has grown."""
    late = [mark for mark in marks if mark[1] >= 0.75 * trials]
    done = late[-1][1] - late[0][1]
    return 1000 * (late[-1][0] - late[0][0]) / done if done else float("nan")


def read_for_report(directory: Path) -> None:
    from ht_ray.report import load_study

    load_study(directory)


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def object_store(address: str) -> tuple[int, int]:
    """Objects in the stores of all nodes, and their bytes."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    stats = get_memory_info_reply(get_state_from_address(address)).store_stats
    return stats.num_local_objects, stats.object_store_bytes_used


def show(rows: list[dict[str, Any]]) -> None:
    table = [[heading for heading, _, _ in COLUMNS]]
    table += [[form.format(row[key]) for _, key, form in COLUMNS] for row in rows]
    for line in (table[0], ["---"] * len(COLUMNS), *table[1:]):
        print("| " + " | ".join(line) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[200, 500, 1000, 2000])
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--cpus", type=int, default=1, help="logical CPUs of each node")
    parser.add_argument("--reports", type=int, default=1, help="of each trial")
    parser.add_argument("--tensorboard", nargs="+", default=["none"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile")
    parser.add_argument("--drive", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drive:
        address, directory = given.drive
        drive(address, Path(directory), given.trials[0], given.reports, given.tensorboard[0], given.profile)
        return

    from ray.cluster_utils import Cluster

    node = {"num_cpus": given.cpus, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    rows = []
    try:
        for _ in range(given.nodes - 1):
            cluster.add_node(num_cpus=given.cpus, object_store_memory=80 * 2**20)
        cluster.wait_for_nodes()
        for trials in given.trials:
            for tensorboard in given.tensorboard:
                with tempfile.TemporaryDirectory() as root:
                    rows.append(one(cluster.address, f"{root}/study", trials, tensorboard, given))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    finally:
        cluster.shutdown()
    show(rows)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def one(address: str, directory: str, trials: int, tensorboard: str, given: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--drive", address, directory, "--trials", str(trials)]
    command += ["--reports", str(given.reports), "--tensorboard", tensorboard]
    command += ["--profile", given.profile] if given.profile else []
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    measured: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return measured


if __name__ == "__main__":
    main()
