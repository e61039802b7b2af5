"""The trial of docs/own_parts.md: at most 60 lines of code, run with Ray from nothing to a report."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def script() -> str:
    text = (CHECKOUT / "docs" / "own_parts.md").read_text()
    match = re.search(r"<!-- no-run -->\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert match is not None
    return match[1]


def test_the_trial_has_at_most_sixty_lines() -> None:
    assert len([line for line in script().splitlines() if line.strip()]) <= 60


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_trial_runs_to_a_report(tmp_path: Path) -> None:
    (tmp_path / "my_trial.py").write_text(script())
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "my_trial.py"], cwd=tmp_path, env=environment, check=True, timeout=500)
    found = {path.name for path in (tmp_path / "drift").iterdir()}
    assert {"report.html", "table.csv", "results.csv"} <= found
    assert (tmp_path / "drift" / "results.csv").read_text().count("finished") == 9
