"""Many failures in few lines."""

from __future__ import annotations

from ht_ray.sweep.records.failure_log import FailureLog


def test_what_is_alike_is_printed_few_times_and_counted_at_the_end() -> None:
    said: list[str] = []
    failures = FailureLog(said.append)
    for seed in range(500):
        failures.add(
            f"a-seed{seed}", "failed", f"Traceback\n  in a-seed{seed}\nValueError: a-seed{seed} at 0x7f{seed:x}"
        )
        failures.add(f"b-seed{seed}", "was restarted", "its worker died")
    failures.close()
    assert len(said) == 2 * (3 + 2 + 1)
    assert said[0] == "trial a-seed0 failed: Traceback\n  in a-seed0\nValueError: a-seed0 at 0x7f0"
    assert said[2] == "trial a-seed1 failed: ValueError: a-seed1 at 0x7f1"
    assert said[-1] == "trial b-seed0 was restarted, and 499 more like it: its worker died"


def test_different_errors_are_all_printed_the_later_ones_in_a_line() -> None:
    said: list[str] = []
    failures = FailureLog(said.append)
    for letter in "abcdefghijklmnop":
        failures.add("t", "failed", f"Traceback\nKeyError: {letter!r}")
    failures.close()
    assert len(said) == 16
    assert [text.count("\n") for text in said] == [1] * 10 + [0] * 6


def test_nothing_is_said_of_nothing() -> None:
    said: list[str] = []
    FailureLog(said.append).close()
    assert said == []
