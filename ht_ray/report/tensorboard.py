"""The report in TensorBoard: methods over each other with their spread, and the figures as images.

Event files are written with TensorBoard's own record writer; neither PyTorch nor TensorFlow is needed.
"""

from __future__ import annotations

import io
import re
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ht_ray.report._files import write_bytes
from ht_ray.report.lines import Line, lines_of
from ht_ray.report.names import indicator_title, shown_indicators, shown_unit
from ht_ray.report.study import MissingDataError, StudyData, split_by_access

__all__ = ["write_events"]

NAME = "events.out.tfevents.{time:.6f}.report"
#: What is drawn of each curve, with the name of its chart.
COLUMNS = {"test_accuracy": "Test accuracy", "train_accuracy": "Training accuracy", "test_loss": "Test loss"}
#: All trials, each in a line of its own, as the sweep wrote them.
TRIALS = ("epoch/test_accuracy", "epoch/train_accuracy", "epoch/test_loss", "epoch/train_loss")


def write_events(study: StudyData, figures: Sequence[Path], directory: Path) -> Path:
    """Write an event file, in place of the one an earlier report wrote there.

    It holds, per label, mean and mean ± standard deviation over the finished trials of test and training accuracy, of
    test loss and of each plasticity indicator (scalars ``CURVE/COLUMN/LABEL``, and ``.../low`` and ``.../high``), a
    layout for the Custom Scalars tab that draws them over each other with their spread, and beside them all trials;
    and each figure as an image.

    Parameters
    ----------
    figures
        PNG files.
    directory
        Where the file goes: a run of its own to TensorBoard.

    Raises
    ------
    MissingDataError
        If the ``tensorboard`` package is not installed.
    SettingError
        If the file cannot be written.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ModuleNotFoundError as error:
        raise MissingDataError(f"TensorBoard's event file: {error}.") from error
    now = time.time()
    stream = io.BytesIO()
    writer = RecordWriter(stream)

    def write(**content: Any) -> None:
        writer.write(Event(wall_time=now, **content).SerializeToString())

    write(file_version="brain.Event:2")
    # A TensorBoard that is looking on drops what it had from the report before.
    write(step=0, session_log=SessionLog(status=SessionLog.START))
    charts: dict[str, list[tuple[str, list[str]]]] = {}
    for category, chart, base, line in _series(study):
        factor, _ = shown_unit(base)  # the trials' own scalars are fractions, too
        tag = f"{base}/{_slug(line.label)}"
        for step, mean, sd in zip(line.x, line.mean / factor, np.nan_to_num(line.sd) / factor, strict=True):
            ends = {tag: mean, f"{tag}/low": mean - sd, f"{tag}/high": mean + sd}
            scalars = [Summary.Value(tag=name, simple_value=value) for name, value in ends.items()]
            write(step=int(step), summary=Summary(value=scalars))
        of_category = charts.setdefault(category, [])
        if not of_category or of_category[-1][0] != chart:
            of_category.append((chart, []))
        of_category[-1][1].append(tag)
    write(summary=Summary(value=[_layout(charts)]))
    for path in figures:
        content = path.read_bytes()
        width, height = struct.unpack(">II", content[16:24])  # of the PNG's first chunk
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
        write(step=0, summary=Summary(value=[Summary.Value(tag=f"figures/{path.stem}", image=image)]))
    target = directory / NAME.format(time=now)
    write_bytes(target, stream.getvalue())
    for old in directory.glob("events.out.tfevents.*.report"):
        if old != target:
            old.unlink()
    return target


def _series(study: StudyData) -> Iterator[tuple[str, str, str, Line]]:
    """Yield category, chart, tag and line, chart by chart."""
    for access, part in split_by_access(study).items():
        end = f" ({access} access)" if access else ""
        root = f"{access}/" if access else ""
        for curve, words in (("epoch", "by epoch"), ("phase", "by phase")):
            for column, title in COLUMNS.items():
                for line in lines_of(part, curve, column, part.labels, sparse=True)[0]:
                    yield f"Methods, {words}{end}", title, f"{root}{curve}/{column}", line
        for column in shown_indicators(part):
            for line in lines_of(part, "epoch", column, part.labels, sparse=True)[0]:
                yield f"Plasticity indicators{end}", indicator_title(column), f"{root}epoch/{column}", line


def _layout(charts: dict[str, list[tuple[str, list[str]]]]) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.types_pb2 import DT_STRING
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata

    def margin(tags: list[str]) -> Any:
        series = [
            layout_pb2.MarginChartContent.Series(value=tag, lower=f"{tag}/low", upper=f"{tag}/high") for tag in tags
        ]
        return layout_pb2.MarginChartContent(series=series)

    categories = [
        layout_pb2.Category(
            title=category, chart=[layout_pb2.Chart(title=title, margin=margin(tags)) for title, tags in of_category]
        )
        for category, of_category in charts.items()
    ]
    lines = [layout_pb2.MultilineChartContent(tag=[f"^{re.escape(tag)}$"]) for tag in TRIALS]
    trials = [layout_pb2.Chart(title=tag, multiline=line) for tag, line in zip(TRIALS, lines, strict=True)]
    categories.append(layout_pb2.Category(title="All trials", chart=trials, closed=True))
    tensor = TensorProto(dtype=DT_STRING, string_val=[layout_pb2.Layout(category=categories).SerializeToString()])
    return Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, metadata=metadata.create_summary_metadata(), tensor=tensor)


def _slug(label: str) -> str:
    return re.sub(r"[^\w.=+&-]+", "_", label)
