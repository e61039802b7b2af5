"""Parameters, draws and the decisions of a search, without Ray."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_trials import INTERVAL, MOMENTUM, Climbing, climbing, load_newest

from ht_ray._storage import Storage
from ht_ray.errors import SettingError
from ht_ray.records.study_files import POPULATION
from ht_ray.sweep import Parameter, Search, SearchConfig, Study, draw_distinct
from ht_ray.sweep.search.population import Lineage, PopulationLog, Segment, next_segments
from ht_ray.sweep.search.search import random_stream, with_values
from ht_ray.sweep.worker.checkpoints import Checkpoint, CheckpointStore

PARAMETERS = (MOMENTUM, INTERVAL, Parameter("x", "x", -2.0, 3.0), Parameter("y", "y", 0, 7, integer=True))
any_parameter = st.sampled_from(PARAMETERS)


def values_of(parameter: Parameter) -> st.SearchStrategy[float]:
    low, high = parameter.bounds
    return st.floats(low, high).map(parameter.value)


@given(any_parameter, st.floats(-1e6, 1e6))
def test_any_coordinate_gives_a_value_of_the_range(parameter: Parameter, coordinate: float) -> None:
    value = parameter.value(coordinate)
    assert parameter.low <= value <= parameter.high
    assert isinstance(value, int) == parameter.integer
    assert json.loads(json.dumps(value)) == value


@given(st.data(), any_parameter)
def test_a_value_is_found_again_from_its_coordinate(data: st.DataObject, parameter: Parameter) -> None:
    value = data.draw(values_of(parameter))
    low, high = parameter.bounds
    assert low <= parameter.coordinate(value) <= high
    assert parameter.value(parameter.coordinate(value)) == value


@given(st.data(), any_parameter)
def test_coordinates_keep_order_up_to_direction(data: st.DataObject, parameter: Parameter) -> None:
    one, other = data.draw(values_of(parameter)), data.draw(values_of(parameter))
    falls = parameter.scale == "log_complement"
    assert (parameter.coordinate(one) < parameter.coordinate(other)) == (one > other if falls else one < other)


@given(st.data(), any_parameter, st.sampled_from([1.2, 0.8]))
def test_a_step_stays_in_the_range_and_goes_one_way(data: st.DataObject, parameter: Parameter, factor: float) -> None:
    value = data.draw(values_of(parameter))
    moved = parameter.perturb(value, factor)
    assert parameter.low <= moved <= parameter.high
    step = parameter.coordinate(moved) - parameter.coordinate(value)
    assert step >= 0 if factor > 1 else step <= 0
    # A whole number is never stuck inside its range, however small the step.
    if parameter.integer and parameter.low < value < parameter.high:
        assert moved != value


def test_steps_are_those_of_the_complement_and_of_the_interval() -> None:
    assert MOMENTUM.perturb(0.97, 0.8) == pytest.approx(0.976)
    assert MOMENTUM.perturb(0.97, 1.2) == pytest.approx(0.964)
    assert [INTERVAL.perturb(10, factor) for factor in (1.2, 0.8)] == [12, 8]
    assert [INTERVAL.perturb(1, factor) for factor in (1.2, 0.8)] == [2, 1]


def test_momenta_have_three_digits_of_their_complement() -> None:
    drawn = [MOMENTUM.draw(random_stream(0, "test", number)) for number in range(200)]
    assert all(float(f"{1 - value:.3g}") == pytest.approx(1 - value, rel=1e-9) for value in drawn)
    # Half of the draws on each side of the middle of the logarithm of 1 - m.
    assert 70 < sum(value > 0.99 for value in drawn) < 130


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "logg"}, "Did you mean 'log'"),
        ({"high": 1.0, "scale": "log_complement"}, "high < 1"),
        ({"low": 0.0, "scale": "log"}, "0 < low"),
        ({"low": 0.5}, "0.5 < high"),
        ({"path": "method..momentum"}, "names joined by dots"),
        ({"low": 0, "high": 1, "integer": True, "scale": "log_complement"}, "high < 1"),
    ],
)
def test_parameters_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Parameter(**{"path": "m", "column": "m", "low": 0.1, "high": 0.5, **changes})


def test_values_are_put_at_their_places_and_nowhere_else() -> None:
    config = {"method": {"momentum": 0.5, "interval": 3}, "seed": 0}
    assert with_values(config, [MOMENTUM], {"momentum": 0.9}) == {"method": {"momentum": 0.9, "interval": 3}, "seed": 0}
    assert config["method"] == {"momentum": 0.5, "interval": 3}
    assert (MOMENTUM.get(config), INTERVAL.get(config)) == (0.5, 3)
    with pytest.raises(SettingError, match=r"no 'momentun' there\. Did you mean 'momentum'"):
        with_values(config, [Parameter("method.momentun", "m", 0.1, 0.2)], {"m": 0.1})
    with pytest.raises(SettingError, match="no 'x' there"):
        with_values(config, [Parameter("seed.x", "m", 0.1, 0.2)], {"m": 0.1})


@given(st.integers(1, 30), st.integers(0, 5))
def test_draws_differ_and_do_not_depend_on_how_many_there_are(number: int, seed: int) -> None:
    drawn = draw_distinct((MOMENTUM, INTERVAL), number, seed, "test")
    assert len({tuple(values.values()) for values in drawn}) == number
    assert drawn == draw_distinct((MOMENTUM, INTERVAL), 30, seed, "test")[:number]


def test_more_draws_than_there_are_values_are_refused() -> None:
    with pytest.raises(SettingError, match=r"9 different settings are wanted, and y in \[0, 7\] hold about 8"):
        draw_distinct((PARAMETERS[3],), 9, 0, "test")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"search": "optuma"}, "Did you mean 'optuna'"),
        ({"scheduler": "ahsa"}, "Did you mean 'asha'"),
        ({"samples": 3}, r"samples = 3 changes nothing: it is a setting of search = 'random' or 'optuna'"),
        ({"population": 4, "scheduler": "asha"}, r"population = 4 changes nothing.*scheduler = 'pbt'"),
        ({"grace_period": 2}, "scheduler = 'asha'"),
        ({"quantile": 0.4}, "scheduler = 'pbt'"),
        ({"quantile": 0.6, "scheduler": "pbt"}, "quantile <= 0.5"),
        ({"scheduler": "pbt", "search": "random"}, "searches by itself"),
        ({"scheduler": "pbt", "population": 1}, "2 <= population"),
        ({"search": "random", "samples": 0}, "1 <= samples"),
        ({"search_seed": 3}, "a grid draws nothing"),
    ],
)
def test_searches_that_cannot_work_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SearchConfig(**fields)


def test_searches_that_would_do_nothing_in_a_study_are_refused() -> None:
    for fields in ({"scheduler": "asha", "grace_period": 4}, {"scheduler": "pbt", "perturbation_interval": 9}):
        with pytest.raises(SettingError, match="reports 4 times"):
            climbing(3, parts=4, search=fields)
    with pytest.raises(SettingError, match=r"'trail0' is not planned\. Did you mean 'trial"):
        planned = climbing(3, search={"scheduler": "asha"})
        search = Search(SearchConfig(scheduler="asha"), (), ("trail0",), 4, {"trail0": "all"})
        Study("x", planned.factory, planned.trials, "average", search=search)


def a_search(**fields: Any) -> Search:
    search = climbing(8, search={"scheduler": "pbt", **fields}).search
    assert search is not None
    return search


def first_of(search: Search) -> dict[str, dict[str, float]]:
    return dict(zip(search.trials, draw_distinct(search.parameters, len(search.trials), 0, "test"), strict=True))


scores = st.lists(st.one_of(st.floats(-10, 10), st.just(math.nan)), min_size=8, max_size=8)


@given(scores, st.sampled_from([0.1, 0.25, 0.5]), st.integers(1, 5), st.permutations(range(8)))
def test_the_worst_copy_the_best(values: list[float], quantile: float, reports: int, order: list[int]) -> None:
    search = a_search(quantile=quantile)
    given = dict(zip(search.trials, values, strict=True))
    segments = next_segments(given, first_of(search), search, "seed 0", reports)
    # Neither depends on the order in which the members came.
    shuffled = {search.trials[number]: values[number] for number in order}
    assert next_segments(shuffled, first_of(search), search, "seed 0", reports) == segments
    number = math.ceil(8 * quantile)
    assert len(segments) <= number
    ranked = sorted((-math.inf if math.isnan(value) else value for value in values), reverse=True)
    for trial, segment in segments.items():
        assert segment.source is not None and segment.source not in segments
        assert given[segment.source] >= ranked[number - 1]
        assert not given[trial] >= given[segment.source]
        for parameter in search.parameters:
            parameter.coordinate(segment.values[parameter.column])  # refuses what is outside the range


def test_settings_are_steps_from_the_copied_ones_or_new() -> None:
    for probability in (0.0, 1.0):
        search = a_search(resample_probability=probability)
        first = first_of(search)
        given = {trial: float(number) for number, trial in enumerate(search.trials)}
        segments = next_segments(given, first, search, "seed 0", 2)
        assert set(segments) == set(search.trials[:2])
        for segment in segments.values():
            near = {
                column: [parameter.perturb(first[str(segment.source)][column], factor) for factor in (1.2, 0.8)]
                for column, parameter in (("momentum", MOMENTUM), ("interval", INTERVAL))
            }
            steps = all(segment.values[column] in near[column] for column in near)
            assert steps == (probability == 0)


def test_what_was_decided_is_read_again_and_a_torn_line_is_decided_alike(tmp_path: Path) -> None:
    search = a_search()
    log = PopulationLog(tmp_path, search, first_of(search))
    given = {trial: float(number) for number, trial in enumerate(search.trials)}
    assert [log.due("seed 0"), *(len(log.decide("seed 0", given)) for _ in range(3)), log.due("seed 0")] == [
        1,
        2,
        2,
        2,
        4,
    ]
    path = tmp_path / POPULATION
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    again = PopulationLog(tmp_path, search, first_of(search))
    assert again.due("seed 0") == 3
    again.decide("seed 0", given)
    assert path.read_bytes() == whole
    assert all(again.lineage(trial) == log.lineage(trial) for trial in search.trials)
    log.decide("seed 0", given)
    log.decide("seed 0", given)
    assert log.due("seed 0") is None  # six reports: the last decision is after five


def test_a_course_says_which_settings_hold_and_whom_a_part_continues() -> None:
    lineage = Lineage((Segment(0, None, {"m": 1.0}), Segment(3, "b", {"m": 2.0})), until=5, members=("a", "b"))
    assert [lineage.segment(reports).values["m"] for reports in range(5)] == [1.0, 1.0, 1.0, 2.0, 2.0]
    assert lineage.row(3) == {"step": 4, "m": 2.0, "copied_from": 2}
    assert lineage.row(4) == {"step": 5, "m": 2.0, "copied_from": 0}
    assert Lineage(lineage.segments).row(3) is None


def test_checkpoints_that_others_may_copy_are_kept_longer(tmp_path: Path) -> None:
    trial = Climbing({"method": {"momentum": 0.9, "interval": 1}, "seed": 0, "parts": 9}, None)
    store = CheckpointStore(Storage(tmp_path), "one", every=3)
    lines = []
    for part in range(1, 9):
        trial.advance()
        lines.append("{}")
        store.save(trial.save, Checkpoint((part, 0), tuple(lines)))
        store.save(trial.save, Checkpoint((part, 1), tuple(lines)))
    assert sorted(path.name[:13] for path in (tmp_path / "one").iterdir()) == [
        *("000003-000000", "000006-000000"),
        *("000008-000000", "000008-000001"),
    ]
    found = load_newest(store, lambda checkpoint: copy.deepcopy(trial), pytest.fail, after=6)
    assert found is not None and len(found[0].gained) == 6  # type: ignore[attr-defined]
    assert load_newest(store, lambda checkpoint: trial, pytest.fail, after=5) is None
    store.end(keep=True)
