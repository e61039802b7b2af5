"""The table of docs/rllib.md, features of RLlib against the mixins, is what ``tests/rllib/matrix.py`` sees."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matrix
import pytest

ROOT = Path(__file__).parents[2]


def documented() -> str:
    """Return the table of the page."""
    page = (ROOT / "docs" / "rllib.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^\| \| DQN \|.*?(?=\n\n)", page, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_page_has_every_feature_and_algorithm() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in documented().splitlines()]
    assert rows[0][1:] == list(matrix.ALGORITHMS)
    assert [row[0] for row in rows[2:]] == list(matrix.FEATURES)
    assert {cell for row in rows[2:] for cell in row[1:]} <= {"works", "refused", "stock fails", ""}


def test_a_word_says_what_was_seen() -> None:
    seen = {"feature": "", "algorithm": ""}
    assert matrix.word({**seen, "ours": "works", "stock": ""}) == "works"
    assert matrix.word({**seen, "ours": "refused: a line", "stock": "works"}) == "refused"
    assert matrix.word({**seen, "ours": "fails: TypeError: a line", "stock": "works"}) == "fails"
    assert matrix.word({**seen, "ours": "refused: a line", "stock": "fails: TypeError: a line"}) == "stock fails"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_page_says_what_is_seen(tmp_path: Path) -> None:
    record = tmp_path / "matrix.jsonl"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "rllib" / "matrix.py"), "--record", str(record)],
        env={**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    seen, page = (text.splitlines() for text in (matrix.table(rows), documented()))
    for one, other in zip(seen, page, strict=True):
        for found, written in zip(one.split("|"), other.split("|"), strict=True):
            # An empty cell is one that nobody tried when the page was written.
            assert written.strip() in (found.strip(), ""), f"{one}\n{other}"
    # A refusal is ours, in one line.
    refused = [row["ours"] for row in rows if row["ours"].startswith("refused")]
    assert all("\n" not in text for text in refused)
