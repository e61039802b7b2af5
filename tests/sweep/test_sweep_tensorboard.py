"""A run of TensorBoard's for each configuration, without Ray."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_trials import spec
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from ht_ray.records import TrialStatus
from ht_ray.records.checked_json import to_json
from ht_ray.records.event_files import HParams
from ht_ray.sweep.records.tensorboard import ConfigurationEvents, StudyEvents, TrialEvents, study_events
from ht_ray.sweep.records.trial_record import TrialRecord


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return events


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = read(folder)
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def report(record: TrialRecord, events: StudyEvents, loss: float | None, steps: int = 1) -> None:
    """Let a trial report `steps` epochs with `loss` and the number of the epoch added to it."""
    index = record.reports
    rows = [
        {"step": step, "loss": None if loss is None else loss + step}
        for step in range(index * steps + 1, index * steps + 1 + steps)
    ]
    made = {"index": index, "curves": {"epoch": rows}, "summary": {"last": loss}, "progress": 0.5, "seconds": 1.0}
    record.append(to_json(made), made)
    events.add(record, made)


def records_of(directory: Path, *labels: str, seeds: int = 2) -> list[TrialRecord]:
    (directory / "trials").mkdir(parents=True, exist_ok=True)
    named = [(label, seed) for label in labels for seed in range(seeds)]
    records = [TrialRecord(directory, spec(f"{label[0]}{seed}", label=label, seed=seed)) for label, seed in named]
    for record in records:
        record.start()
    return records


def test_a_step_is_written_once_all_seeds_have_it(tmp_path: Path) -> None:
    records = records_of(tmp_path, "Plain")
    events = ConfigurationEvents(tmp_path, records)
    report(records[0], events, 1.0, steps=2)
    assert not (tmp_path / "tensorboard").exists()
    report(records[1], events, 4.0)
    run = tmp_path / "tensorboard/Plain"
    assert scalars(run) == {
        "epoch/loss": [(1, 3.5)],
        "std/epoch/loss": [(1, pytest.approx(3 / math.sqrt(2)))],
        "summary/last": [(1, 2.5)],
        "std/summary/last": [(1, pytest.approx(3 / math.sqrt(2)))],
    }
    report(records[1], events, 6.0)
    assert scalars(run)["epoch/loss"] == [(1, 3.5), (2, 5.5)]


def test_a_seed_that_has_ended_is_not_waited_for(tmp_path: Path) -> None:
    records = records_of(tmp_path, "Plain")
    events = ConfigurationEvents(tmp_path, records)
    for record, reports in zip(records, (3, 1), strict=True):
        for _ in range(reports):
            report(record, events, 0.0)
    run = tmp_path / "tensorboard/Plain"
    assert len(scalars(run)["epoch/loss"]) == 1
    records[1].end(TrialStatus.DIVERGED, "the loss was nan")
    events.end(records[1])
    assert scalars(run)["epoch/loss"] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert len(scalars(run)["std/epoch/loss"]) == 1
    records[0].end(TrialStatus.FINISHED)
    events.end(records[0])
    content = read(run).summary_metadata[metadata.SESSION_END_INFO_TAG].plugin_data.content
    assert metadata.parse_session_end_info_plugin_data(content).status == api_pb2.STATUS_FAILURE


def test_repeated_reports_count_once_and_null_is_nan(tmp_path: Path) -> None:
    records = records_of(tmp_path, "Plain")
    events = ConfigurationEvents(tmp_path, records)
    report(records[0], events, 1.0)
    records[0].cut(0)
    events.changed(records[0])
    events.begin(records[0])
    report(records[0], events, 1.0)
    report(records[1], events, None)
    ((step, value),) = scalars(tmp_path / "tensorboard/Plain")["epoch/loss"]
    assert step == 1
    assert math.isnan(value)


def test_hparams_have_a_row_for_each_configuration(tmp_path: Path) -> None:
    records = records_of(tmp_path, "Plain", "EMA m=0.9")
    events = ConfigurationEvents(tmp_path, records)
    for record in records:
        report(record, events, 1.0)
        record.end(TrialStatus.FINISHED)
        events.end(record)
    assert {path.name for path in (tmp_path / "tensorboard").iterdir()} == {"Plain", "EMA_m=0.9"}
    content = read(tmp_path / "tensorboard/EMA_m=0.9").summary_metadata
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG].plugin_data.content)
    assert start.hparams["method"].string_value == "ema m=0.9"
    assert start.hparams["seeds"].number_value == 2
    assert "seed" not in start.hparams
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG].plugin_data.content)
    assert end.status == api_pb2.STATUS_SUCCESS


def test_configurations_of_one_label_have_names_of_their_own(tmp_path: Path) -> None:
    records = records_of(tmp_path, "A/b", "a\\b", "C", "D")
    for record, access in zip(records[4:], ("full", "full", "buffer", "buffer"), strict=True):
        record.spec.settings.update(access=access, method="same")
    for record in records[6:]:
        object.__setattr__(record.spec, "label", "C")
    events = ConfigurationEvents(tmp_path, records)
    for record in records:
        report(record, events, 1.0)
    names = {path.name for path in (tmp_path / "tensorboard").iterdir()}
    assert names == {"A_b", "a_b_1", "C_access=full", "C_access=buffer"}


@settings(deadline=None, max_examples=30)
@given(order=st.lists(st.integers(0, 5), min_size=1, max_size=30), stop=st.integers(0, 30))
def test_what_is_written_depends_neither_on_order_nor_on_resuming(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], stop: int
) -> None:
    def run(directory: Path, order: list[int], again_at: int | None) -> list[dict[str, Any]]:
        records = records_of(directory, "Plain", "Ema", seeds=3)
        events = ConfigurationEvents(directory, records)
        for number, which in enumerate(order):
            if number == again_at:
                records = [TrialRecord(directory, record.spec) for record in records]
                events = ConfigurationEvents(directory, records)
            report(records[which], events, 0.1 * which)
        for record in records:
            record.end(TrialStatus.FINISHED)
            events.end(record)
        return [
            scalars(directory / "tensorboard" / name)
            for name in ("Plain", "Ema")
            if (directory / "tensorboard" / name).exists()
        ]

    root = tmp_path_factory.mktemp("orders")
    written = run(root / "a", order, None)
    assert written == run(root / "b", sorted(order), None)
    assert written == run(root / "c", order, stop)


def test_many_values_of_a_setting_do_not_make_large_files() -> None:
    few, many = (HParams([{"m": n / 1000, "method": str(n)} for n in range(count)]) for count in (30, 3000))
    sizes = [len(hparams.start({"m": 0.5}, ["summary/a"])[0].SerializeToString()) for hparams in (few, many)]
    assert sizes[1] < sizes[0]


def test_a_large_study_hears_of_the_lighter_way(tmp_path: Path) -> None:
    said: list[str] = []
    records = [TrialRecord(tmp_path, spec(f"t{n}", label=f"m={n // 5}", seed=n % 5)) for n in range(250)]
    assert isinstance(study_events("trials", tmp_path, records, said.append), TrialEvents)
    assert len(said) == 1
    assert "250 runs" in said[0]
    assert "--tensorboard configurations writes 50" in said[0]
    study_events("trials", tmp_path, records[:200], said.append)
    study_events("configurations", tmp_path, records, said.append)
    study_events("none", tmp_path, records, said.append).begin(records[0])
    assert len(said) == 1
    assert not list(tmp_path.iterdir())
