"""The script that measures on a GPU works without one, and goes on where it was cut short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


def measure(out: Path, *arguments: str) -> tuple[str, list[dict]]:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--tiny", "--out", str(out), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
def test_every_part_works_on_the_cpu(tmp_path: Path) -> None:
    printed, rows = measure(tmp_path / "gpu.jsonl")
    parts = {row["part"] for row in rows}
    assert {"card", "methods", "throughput", "agents", "agent_speed", "waits", "repeated", "indicators"} <= parts
    assert not [row for row in rows if row.get("ok") is False or "error" in row or "late" in row]
    assert f"{len(rows)} cases, 0 not as they should be" in printed
    assert all(f"### {part}" in printed for part in parts)


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    measure(out, "--only", "methods")
    whole = out.read_text().splitlines()
    late = {**json.loads(whole[-1]), "late": "the part took more than 1 s", "ok": False}
    out.write_text("\n".join([*whole[:-1], json.dumps(late)]) + "\n")
    printed, rows = measure(out, "--only", "methods")
    measured = [line for line in printed.splitlines() if line.startswith("{")]
    assert len(measured) == 1
    assert json.loads(measured[0])["case"] == late["case"]
    assert [row["case"] for row in rows] == [json.loads(line)["case"] for line in whole]
    assert out.read_text().splitlines()[:-1] == whole[:-1]
