"""Sixty disturbances at random moments of one study, and whether its results are those of an undisturbed run.

    python tests/chaos/soak.py [--seed 0] [--disturbances 60] [--minutes 40]

runs a real study (the ablation on the embedded digits) on a simulated cluster of three nodes, and disturbs it:

    worker  35 %  SIGKILL of a worker that runs a trial
    stop    15 %  such a worker stands still for up to 20 seconds (SIGSTOP, then SIGCONT)
    raylet  15 %  SIGKILL of a node's raylet alone
    node    10 %  SIGKILL of a node with all that runs on it
    driver   8 %  SIGKILL of the driver while trials run
    start   17 %  SIGKILL of the driver while it starts: before there is a study, and after another kill of the driver

The driver is started again with the same command until it exits with 0. Exit code 0 when every report, table and event
file equals that of the same study run in peace, and nothing is left: no file, no process. Bounded: it gives up, and
ends all that it started, after ``--minutes``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(CHECKOUT)]

from same_results import differences, journal  # noqa: E402
from simulated_cluster import SimulatedCluster  # noqa: E402

STUDY = "--momenta 0.5 0.9 --reset-intervals 1 2 --baselines plain ema shrink_perturb --phases 8 --max-failures 20"
# The disturbances are to be over when so much of the study is done.
_SHARE = 0.85
_SHARES = {"worker": 0.35, "stop": 0.15, "raylet": 0.15, "node": 0.1, "driver": 0.08}
# The next comes after so many seconds also where the study has not got further.
_PATIENCE = 20.0
# So many seconds of a driver's start are disturbed, and so long a worker stands still at most.
_START, _STILL = 25.0, 20.0
# In the environment of all processes that the soak starts.
_MARK = "HT_RAY_SOAK"


class Soak:
    """One study, its driver and its cluster."""

    def __init__(self, directory: Path, flags: list[str], log: Path, end: float) -> None:
        self.directory = directory
        self.cluster = SimulatedCluster(3)
        self.scratch = log.with_name("scratch")
        self.scratch.mkdir()
        self.driver: subprocess.Popen[bytes] | None = None
        self.codes: Counter[int] = Counter()
        self._command = [*command(flags), "--resume-or-start", str(directory), "--address", self.cluster.address]
        self._log = log
        self._end = end

    def start_driver(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            self.driver = subprocess.Popen(
                self._command,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(self.scratch)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.driver

    def kill_driver(self) -> None:
        if self.driver is not None and self.driver.poll() is None:
            os.killpg(self.driver.pid, signal.SIGKILL)
            self.driver.wait()
        self._note_code()

    def _note_code(self) -> None:
        if self.driver is not None and self.driver.poll() is not None:
            self.codes[self.driver.returncode] += 1
            self.driver = None

    def until(self, condition: Callable[[], bool]) -> bool:
        """Start the driver whenever none runs until `condition` holds; False if it exits with 0, or time is up."""
        while not condition():
            self._note_code()
            if self.codes[0] or time.monotonic() > self._end:
                return False
            if self.driver is None:
                self.start_driver()
            time.sleep(0.1)
        return True

    def progress(self, planned: int) -> float:
        """The share of the study's reports that are there."""
        lines = sum(path.read_bytes().count(b"\n") for path in self.directory.glob("trials/*/results.jsonl"))
        return lines / planned

    def disturb(self, kind: str, draw: random.Random) -> str | None:
        """Disturb the study once, and return what is to be said of it; None if that was no longer possible."""
        if kind == "worker":
            return "killed" if self.until(lambda: self.cluster.kill_worker(draw)) else None
        if kind == "stop":
            seconds = draw.uniform(1, _STILL)
            return f"for {seconds:.1f} s" if self.until(lambda: self.cluster.stop_worker(draw, seconds)) else None
        if kind == "driver":
            if not self.until(lambda: bool(self.cluster.workers)):
                return None
            self.kill_driver()
        elif kind == "start":
            return self._kill_start(draw)
        elif kind == "raylet":
            self.cluster.kill_raylet(draw)
        else:
            self.cluster.kill_node(draw)
        return "killed"

    def _kill_start(self, draw: random.Random) -> str:
        self.kill_driver()
        began, driver = time.monotonic(), self.start_driver()
        if not self.directory.exists() and draw.random() < 0.5:
            # The moment in which the study is being made is short.
            while not self.directory.exists() and driver.poll() is None:
                time.sleep(0.002)
            time.sleep(draw.uniform(0, 0.2))
        else:
            time.sleep(draw.uniform(0, _START))
        self.kill_driver()
        files = sorted(path.name for path in self.directory.glob("*"))
        there = "with" if "config.json" in files else f"{files} and no"
        return f"killed after {time.monotonic() - began:.1f} s, {there} config.json"


def command(flags: list[str]) -> list[str]:
    return [sys.executable, str(CHECKOUT / "tune_configs" / "ablation.py"), *flags]


def kinds(number: int, draw: random.Random) -> list[str]:
    """What is done, in order: a third of the starts first, the others after a driver's kill each."""
    drawn = [kind for kind, share in _SHARES.items() for _ in range(round(number * share))]
    draw.shuffle(drawn)
    starts = number - len(drawn)
    first = -(-starts // 3)
    for _ in range(starts - first):
        drawn.insert(draw.choice([i for i, kind in enumerate(drawn) if kind == "driver"]) + 1, "start")
    return ["start"] * first + drawn


def disturb(soak: Soak, plan: list[str], planned: int, draw: random.Random) -> Counter[str]:
    """Do what `plan` says at random moments, spread over the study; return what was done."""
    done: Counter[str] = Counter()
    for number, kind in enumerate(plan):
        if kind != "start":
            # Not before the study has got as far as this share of the disturbances, then at random.
            share, late = _SHARE * number / len(plan), time.monotonic() + _PATIENCE
            if not soak.until(lambda: soak.progress(planned) >= share or time.monotonic() > late):  # noqa: B023
                break
            time.sleep(draw.uniform(0, 2))
        harm = soak.disturb(kind, draw)
        if harm is None:
            break
        done[kind] += 1
        say(f"{number + 1:3d} of {len(plan)}: {kind:6s} {harm}, {soak.progress(planned):.1%} of the reports are there")
    return done


def names(directory: Path) -> set[str]:
    """The files of a study, without the parts of their names that are drawn."""
    drawn = re.compile(r"(?<=/events\.out\.).*|(?<=-)[0-9a-f]{8}(?=/|$)")
    return {drawn.sub("...", str(path.relative_to(directory))) for path in directory.rglob("*")}


def processes(mark: str) -> list[str]:
    """The processes that have `mark` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"{_MARK}={mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(f"{path.name} {(path / 'cmdline').read_text(errors='replace')[:60]!r}")
        except OSError:
            continue
    return found


def left_behind(soak: Soak, reference: Path, mark: str) -> list[str]:
    """Sentences on files and processes that an undisturbed study does not leave, and on those that lack."""
    end = time.monotonic() + 30
    while processes(mark) and time.monotonic() < end:
        time.sleep(0.5)
    mine, theirs = names(soak.directory), names(reference)
    found = [f"left behind: {name}" for name in sorted(mine - theirs)]
    found += [f"missing: {name}" for name in sorted(theirs - mine)]
    # Killed while they import wandb, drivers leave two empty folders of that, too.
    found += [f"left behind in TMPDIR: {path.name}" for path in soak.scratch.glob("*ht-ray*")]
    return found + [f"left behind: process {process}" for process in processes(mark)]


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--disturbances", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=40.0, help="for all of it")
    parser.add_argument("--trial-seeds", type=int, default=10, help="for each, eight trials of eight reports")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--keep", help="a directory for what is written; by default it goes")
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    draw = random.Random(given.seed)
    flags = [*shlex.split(STUDY), "--seeds", str(given.trial_seeds), "--epochs", str(given.epochs)]
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        root = Path(given.keep or scratch)
        root.mkdir(parents=True, exist_ok=True)
        reference, directory = root / "undisturbed", root / "disturbed"
        began = time.monotonic()
        if not (reference / "table.csv").exists():
            alone = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
            subprocess.run(
                [*command(flags), "--results-dir", str(reference)],
                env={**alone, "OMP_NUM_THREADS": "1"},
                check=True,
                capture_output=True,
            )
            say(f"undisturbed: {time.monotonic() - began:.0f} s")
        planned = 8 * 8 * given.trial_seeds
        mark = os.environ[_MARK] = str(root)
        began = time.monotonic()
        soak = Soak(directory, flags, root / "drivers.log", end)
        try:
            done = disturb(soak, kinds(given.disturbances, draw), planned, draw)
            soak.until(lambda: False)
        finally:
            soak.kill_driver()
            soak.cluster.close()
        if not soak.codes[0]:
            say("the time is up")
            return 1
        seconds = time.monotonic() - began
        found = differences(directory, reference) + left_behind(soak, reference, mark)
        events = journal(directory)
        say(f"journal: {dict(Counter(entry['event'] for entry in events))}")
        say(f"faults: {dict(Counter(entry['kind'] for entry in events if entry['event'] == 'fault'))}")
        for difference in found:
            say(difference)
        report = {
            "seed": given.seed,
            "reports": planned,
            "disturbances": dict(done),
            "differences": len(found),
            "driver starts": sum(soak.codes.values()),
            "exit codes": dict(soak.codes),
            "seconds": round(seconds),
        }
        say(json.dumps(report))
        return int(bool(found) or sum(done.values()) != given.disturbances)


if __name__ == "__main__":
    sys.exit(main())
