"""The table that a terminal shows at the end of a study: it fits on a screen, whatever the study."""

from __future__ import annotations

from typing import Any

import pytest

from ht_ray.report import load_study
from ht_ray.report.summary import MOST_ROWS, summarize

LINES, COLUMNS = 19, 100  # of a screen of 24 lines, five are the command line's


def lines_of(root: Any) -> list[str]:
    lines = summarize(load_study(root)).splitlines()
    assert len(lines) <= LINES and max(map(len, lines)) <= COLUMNS, lines
    return lines


def test_methods_in_two_access_modes(write_study: Any, planned: Any) -> None:
    trials = [
        planned(label, seed, [[value], [value + 0.01 * seed]], method, settings={"access": access})
        for access in ("full", "buffer")
        for label, method, value in (("Plain", "plain", 0.5), ("EMA m=0.9", "ema", 0.6), ("ReDo", "redo", 0.4))
        for seed in (0, 1, 2)
    ]
    lines = lines_of(write_study(trials))
    rows = [line for line in lines if line.startswith(("Plain", "EMA", "ReDo"))]
    assert len(rows) == 6 and [row.split()[-1] for row in rows].count("0.00") == 4
    assert rows[1].split()[:3] == ["EMA", "m=0.9", "full"] and "60.50 ± 0.50*" in rows[1] and "+10.00 ± 0.00" in rows[1]
    assert [row for row in rows if "*" in row] == [rows[1], rows[4]]
    assert "* best average accuracy, chosen on test data." in lines


def test_many_settings_are_the_best_of_each_method(write_study: Any, planned: Any, grid_trials: Any) -> None:
    more = [planned(f"ReDo t={n}", seed, [[0.3 + n / 100]] * 3, "redo") for n in range(20) for seed in (0, 1)]
    lines = lines_of(write_study([*grid_trials, *more]))
    assert any(line.startswith("ReDo t=19 (best of 20)") for line in lines)
    assert any(line.startswith("Hare & Tortoise m=0.99 r=") and "(best of 4)" in line for line in lines)
    assert any("more settings are in the report" in line for line in lines)


def test_more_methods_than_lines(write_study: Any, planned: Any) -> None:
    trials = [planned("Plain", 0, [[0.1]], "plain")]
    trials += [planned(f"Method {n:02}", 0, [[0.3 + n / 100]], f"m{n}") for n in range(30)]
    lines = lines_of(write_study(trials))
    shown = [line.split("  ")[0] for line in lines if line.startswith(("Plain", "Method"))]
    assert shown == ["Plain", *(f"Method {n:02}" for n in range(30 - MOST_ROWS + 1, 30))]
    assert any(f"{31 - MOST_ROWS} more settings" in line for line in lines)


def test_what_is_missing_is_counted_and_without_plain_nothing_is_compared(write_study: Any, planned: Any) -> None:
    trials = [planned("EMA", 0, [[0.5]]), planned("EMA", 1, [[0.5]], status="failed", error="x")]
    lines = lines_of(write_study(trials))
    assert not any("minus Plain" in line for line in lines)
    assert any(line.startswith("EMA") and "1 of 2" in line for line in lines)


@pytest.mark.parametrize("seeds", [1, 3])
def test_warm_starts(write_study: Any, warm: Any, seeds: int) -> None:
    trials = [
        warm(f"ratio {ratio} noise {noise}", seed, 0.9 - noise / 10, ratio=ratio, noise=noise)
        for ratio in (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
        for noise in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
        for seed in range(seeds)
    ]
    text = summarize(load_study(write_study(trials)))
    assert text.count("noise") >= 6 and len(text.splitlines()) <= LINES
    methods = [warm("Plain", 0, 0.8), warm("L2", 0, 0.9, method="l2")]
    lines = lines_of(write_study(methods, name="methods", metric="final_accuracy"))
    assert not any("average" in line for line in lines[:6])
