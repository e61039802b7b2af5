"""TensorBoard's part of the report: methods over each other with their spread, and the figures as images.

Event files are written with TensorBoard's own record writer; neither PyTorch nor TensorFlow is needed.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ht_ray._files import locked
from ht_ray.records.study_files import LOCK, Reports
from ht_ray.report.atari.curves import efficiency_lines, game_lines
from ht_ray.report.atari.study import is_atari, variants_of
from ht_ray.report.data.files import Log, remove, with_patience, write_bytes
from ht_ray.report.data.study import MissingDataError, StudyData, split_by_access
from ht_ray.report.style.curve_lines import Line, curve_lines
from ht_ray.report.style.formats import display_unit, humanize, indicator_title, reported_indicators

__all__ = ["repair_trial_events", "write_events"]

NAME = "events.out.tfevents.{time:.6f}.report"
#: What is drawn of each curve, with the name of its chart.
COLUMNS = {"test_{}": "Test {}", "train_{}": "Training {}", "test_loss": "Test loss"}
#: All trials, each in a line of its own, as the sweep wrote them.
TRIALS = ("epoch/test_{}", "epoch/train_{}", "epoch/test_loss", "epoch/train_loss")
ATARI_TRIALS = ("evaluation/human_normalised", "evaluation/score", "training_games/score", "training/loss")


def write_events(study: StudyData, figures: Sequence[Path], directory: Path) -> list[Path]:
    """Write event files, and remove those that an earlier report wrote there.

    Each label has a run of its own, ``directory/LABEL``, as TensorBoard gives a colour to a run: mean, and mean ±
    standard deviation, over its finished trials of test and training accuracy, test loss and each plasticity indicator
    (scalars ``mean/CURVE/COLUMN``, ``.../low`` and ``.../high``). Of an Atari study each variant has one, with the
    interquartile mean of its human-normalised scores (``iqm/evaluation``, no spread) and the score in each game
    (``mean/evaluation/GAME``). The run ``directory`` has a layout for the Custom Scalars tab, which draws the labels
    over each other with their spread, and each figure as an image.

    Parameters
    ----------
    figures : sequence of Path
        PNG files.
    directory : Path
        The folder of the runs.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    MissingDataError
        If the ``tensorboard`` package is not installed.
    SettingError
        If a file cannot be written.
    """
    try:
        from tensorboard.compat.proto.summary_pb2 import Summary
    except ModuleNotFoundError as error:
        raise MissingDataError(f"TensorBoard's event files: {error}.") from error
    events: dict[str, list[tuple[int, Any]]] = {}
    charts: dict[str, dict[str, str]] = {}
    atari = is_atari(study)
    runs = _run_names([variant.name for variant in variants_of(study)] if atari else study.labels)
    for category, chart, tag, line in (_atari_series if atari else _series)(study):
        charts.setdefault(category, {})[tag] = chart
        factor, _ = display_unit(tag)  # the trials' own scalars are fractions, too
        own = events.setdefault(runs[line.label], [])
        for step, mean, sd in zip(line.x, line.mean / factor, np.nan_to_num(line.sd) / factor, strict=True):
            ends = {tag: mean, f"{tag}/low": mean - sd, f"{tag}/high": mean + sd}
            scalars = [Summary.Value(tag=name, simple_value=value) for name, value in ends.items()]
            own.append((int(step), Summary(value=scalars)))
    single = ATARI_TRIALS if atari else [tag.format(study.measure) for tag in TRIALS]
    shown = events.setdefault("", [(0, Summary(value=[_layout(charts, single)]))])
    for path in figures:
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # of the PNG's first chunk
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
        shown.append((0, Summary(value=[Summary.Value(tag=f"figures/{path.stem}", image=image)])))
    now = time.time()
    written = []
    for run, summaries in events.items():
        written.append(directory / run / NAME.format(time=now))
        write_bytes(written[-1], _file(summaries, now))
    for old in directory.rglob(NAME.format(time=0).replace("0.000000", "*")):
        if old not in written:
            remove(old)
    return written


def repair_trial_events(study: StudyData, log: Log) -> None:
    """Write the event files of trials that have ended again, where they are damaged or gone.

    A study that is at work is left to its driver, and one without such files (``--tensorboard`` with another value), or
    a copy of one that is at a URI, is left as it is.

    Raises
    ------
    StorageError
        If the disk is full or lost.
    """
    lock, trials = study.directory / LOCK, study.directory / "trials"
    runs = study.journal.runs if study.journal is not None else ()
    kind = runs[-1].began.text("tensorboard") if runs else ""
    if kind not in ("", "trials") or not (kind or any(trials.glob("*/events.out.tfevents.*"))) or not lock.is_file():
        return
    try:
        from ht_ray.records.event_files import HParams, ended_events, mend
    except ModuleNotFoundError:
        return  # the report says so
    hparams = HParams([trial.settings for trial in study.trials])
    mended = 0
    with locked(lock) as free:
        for trial in study.trials if free else ():
            if trial.status not in ("finished", "diverged", "stopped") or not trial.curves or trial.damage:
                continue
            reports = Reports((trials / trial.id / "results.jsonl").read_bytes())
            events = ended_events(hparams, trial.settings, reports, trial.status)
            mended += with_patience(partial(mend, trials / trial.id, events))
    if mended:
        log(f"Event files of {mended} trials that have ended were damaged or missing: written again.")


def _file(summaries: Sequence[tuple[int, Any]], now: float) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    from ht_ray.records.event_files import encode, first_events

    rows = [Event(wall_time=now, step=step, summary=summary) for step, summary in summaries]
    return encode([*first_events(now), *rows])


def _series(study: StudyData) -> Iterator[tuple[str, str, str, Line]]:
    """Yield category, chart, tag and line, chart by chart."""
    for access, part in split_by_access(study).items():
        end, root = (f" ({access} access)", f"mean/{access}") if access else ("", "mean")
        for curve in ("epoch", "phase"):
            for column, title in COLUMNS.items():
                column, title = column.format(study.measure), title.format(humanize(study.measure))
                for line in curve_lines(part, curve, column, part.labels, sparse=True)[0]:
                    yield f"Methods, by {curve}{end}", title, f"{root}/{curve}/{column}", line
        for column in reported_indicators(part):
            for line in curve_lines(part, "epoch", column, part.labels, sparse=True)[0]:
                yield f"Plasticity indicators{end}", indicator_title(column), f"{root}/epoch/{column}", line


def _atari_series(study: StudyData) -> Iterator[tuple[str, str, str, Line]]:
    for line in efficiency_lines(study):
        yield "Sample efficiency", "Human-normalised IQM", "iqm/evaluation", line
    for game, lines in game_lines(study).items():
        for line in lines:
            yield "Scores by game", game, f"mean/evaluation/{game}", line


def _layout(charts: dict[str, dict[str, str]], trials: Sequence[str]) -> Any:
    """Return the layout: a category for each key of `charts`, in it a chart for each tag, under the title given.

    The last has a chart for each of `trials`, tags of the trials' own scalars.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    def margin(tag: str, title: str) -> Any:
        series = layout_pb2.MarginChartContent.Series(value=tag, lower=f"{tag}/low", upper=f"{tag}/high")
        return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[series]))

    categories = [
        # TensorBoard (2.21) draws the last chart of a category first.
        layout_pb2.Category(title=category, chart=[margin(tag, title) for tag, title in reversed(tags.items())])
        for category, tags in charts.items()
    ]
    single = [
        layout_pb2.Chart(title=tag, multiline=layout_pb2.MultilineChartContent(tag=[f"^{tag}$"]))
        for tag in reversed(trials)
    ]
    categories.append(layout_pb2.Category(title="All trials", chart=single, closed=True))
    tensor = TensorProto(dtype=DT_STRING, string_val=[layout_pb2.Layout(category=categories).SerializeToString()])
    return Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, metadata=metadata.create_summary_metadata(), tensor=tensor)


def _run_names(labels: Sequence[str]) -> dict[str, str]:
    """Return a folder's name for each label, no two alike."""
    names: dict[str, str] = {}
    for label in labels:
        name = re.sub(r"[^\w.=+-]+", "_", label)
        names[label] = f"{name}_{len(names)}" if name in names.values() else name
    return names
