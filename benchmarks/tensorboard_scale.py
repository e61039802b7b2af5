"""What TensorBoard does with a study of many trials: a run for each trial, or for each configuration.

    python benchmarks/tensorboard_scale.py [TRIALS] [EPOCHS]

writes the event files of 1000 trials (five seeds to a configuration) of 100 epochs, as a study would, starts a
TensorBoard on them, and asks it over HTTP for what its page asks for: the runs, one chart with all its lines, and the
HParams tab's table. Seconds count from the start of the server; megabytes are what the browser is sent.
"""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from ht_ray.records import TrialStatus
from ht_ray.records.checked_json import to_json
from ht_ray.sweep import TrialSpec
from ht_ray.sweep.records.tensorboard import study_events
from ht_ray.sweep.records.trial_record import TrialRecord

SEEDS = 5
PHASES = 10
COLUMNS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")


def reports(number: int, epochs: int) -> list[dict[str, Any]]:
    made = []
    for phase in range(PHASES):
        steps = range(phase * epochs // PHASES, (phase + 1) * epochs // PHASES)
        rows = [
            {"step": step + 1, **{name: math.sin(step * 0.1 + number) for name in COLUMNS}, "phase": phase + 1}
            for step in steps
        ]
        summary = {"average_accuracy": rows[-1]["test_accuracy"], "final_accuracy": rows[-1]["test_accuracy"]}
        curves = {"epoch": rows, "phase": [{**rows[-1], "step": phase + 1}]}
        progress = (phase + 1) / PHASES
        made.append({"index": phase, "curves": curves, "summary": summary, "progress": progress, "seconds": 1.0})
    return made


def write_study(directory: Path, trials: int, epochs: int, kind: str) -> float:
    """Return the seconds that the driver spends on event files per trial."""
    (directory / "trials").mkdir()
    records = []
    for number in range(trials):
        configuration, seed = divmod(number, SEEDS)
        settings = {"method": "hare_tortoise", "momentum": configuration / trials, "seed": seed}
        records.append(TrialRecord(directory, TrialSpec(f"trial-{number}", f"m={configuration}", settings)))
    events = study_events(kind, directory, records, lambda text: None)
    spent = 0.0
    for number, record in enumerate(records):
        record.start()
        told = reports(number, epochs)
        began = time.process_time()
        events.begin(record)
        spent += time.process_time() - began
        for report in told:
            record.append(to_json(report), report)
            began = time.process_time()
            events.add(record, report)
            spent += time.process_time() - began
        record.end(TrialStatus.FINISHED)
        events.end(record)
    return spent / trials


def ask(url: str, body: bytes | None = None, content: str = "application/json") -> bytes:
    request = urllib.request.Request(url, data=body, headers={"Content-Type": content})
    with urllib.request.urlopen(request, timeout=600) as answer:
        found: bytes = answer.read()
    return found


def measure(logdir: Path, runs: int, columns: int) -> dict[str, float]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    began = time.perf_counter()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ})
    url = f"http://127.0.0.1:{port}/data"
    told: dict[str, float] = {}
    try:
        while True:
            try:
                listed = json.loads(ask(f"{url}/runs"))
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
                continue
            told.setdefault("answers", time.perf_counter() - began)
            if len(listed) >= runs:
                break
            time.sleep(0.2)
        told["lists all runs"] = time.perf_counter() - began
        chart = json.dumps([{"plugin": "scalars", "tag": "epoch/test_accuracy"}])
        form = urllib.parse.urlencode({"requests": chart}).encode()
        while True:
            start = time.perf_counter()
            content = ask(f"{url}/plugin/timeseries/timeSeries", form, "application/x-www-form-urlencoded")
            lines = json.loads(content)[0].get("runToSeries", {})
            # The last event of the last run: all has been read.
            if len(lines) >= runs and all(len(line) == columns for line in lines.values()):
                break
            time.sleep(0.2)
        told["has read all"] = time.perf_counter() - began
        told["chart s"] = time.perf_counter() - start
        told["chart MB"] = len(content) / 1e6
        start = time.perf_counter()
        tags = ask(f"{url}/plugin/timeseries/tags")
        told["tags s"], told["tags MB"] = time.perf_counter() - start, len(tags) / 1e6
        start = time.perf_counter()
        wanted = {"startIndex": 0, "sliceSize": 100000, "colParams": [{"hparam": "momentum"}]}
        wanted["allowedStatuses"] = ["STATUS_SUCCESS", "STATUS_RUNNING", "STATUS_UNKNOWN", "STATUS_FAILURE"]
        rows = ask(f"{url}/plugin/hparams/session_groups", json.dumps(wanted).encode())
        told["HParams s"], told["HParams MB"] = time.perf_counter() - start, len(rows) / 1e6
        told["HParams rows"] = len(json.loads(rows)["sessionGroups"])
        told["server RSS MB"] = resident(server.pid)
    finally:
        server.terminate()
        server.wait()
    return told


def resident(pid: int) -> float:
    """Megabytes of a process and its children."""
    import psutil

    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) / 1e6


def main() -> None:
    trials, epochs = (int(text) for text in (*sys.argv[1:], "1000", "100")[:2])
    for kind in ("trials", "configurations"):
        with tempfile.TemporaryDirectory() as root:
            spent = write_study(Path(root), trials, epochs, kind)
            logdir = Path(root) / ("trials" if kind == "trials" else "tensorboard")
            size = sum(path.stat().st_size for path in logdir.rglob("events.out.*")) / 1e6
            runs = trials if kind == "trials" else trials // SEEDS
            print(f"{kind}: {runs} runs, {size:.1f} MB, {1000 * spent:.1f} ms of the driver per trial")
            for name, value in measure(logdir, runs, epochs).items():
                print(f"    {name}: {value:.2f}")


if __name__ == "__main__":
    main()
