"""Records of finished runs: one JSON file each, checked as it is read and written at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ht_ray.errors import SettingError
from ht_ray.report.data.files import write_text
from ht_ray.vision import Row

__all__ = ["Record", "columns", "file_name", "is_atari", "read_records", "write_record"]

Record = dict[str, Any]
"""What a file holds: plain data, see `SCHEMA` and `ATARI_SCHEMA`."""

FORMAT = 1
_NUMBER = (int, float)
_CALLS = [
    {
        "device": str,
        "ht_ray": str,
        "torch": str,
        "python": str,
        "graph": str,
        "started": str,
        "seconds": (*_NUMBER, type(None)),
    }
]
#: Fields and their types; a list of one schema stands for a list of such items, a tuple for alternatives.
SCHEMA: Mapping[str, Any] = {
    "format": int,
    "cell": str,
    "seed": int,
    "data": {"name": str, "train_images": int, "test_images": int, "encoding": str, "digest": str},
    "settings": {"model": dict, "stream": dict, "method": dict, "training": dict},
    "protocol": {
        "phases": [{"samples": int, "epochs": int, "steps": int, "label_noise": _NUMBER}],
        "evaluate_every": int,
    },
    "calls": _CALLS,
    "results": {
        "final_accuracy": _NUMBER,
        "final_train_accuracy": _NUMBER,
        "first_accuracy": _NUMBER,
        "average_accuracy": _NUMBER,
        "online_accuracy": _NUMBER,
    },
    "curve": {
        "phase": [int],
        "epoch": [int],
        "step": [int],
        "train_loss": [_NUMBER],
        "train_accuracy": [_NUMBER],
        "test_loss": [_NUMBER],
        "test_accuracy": [_NUMBER],
    },
}
#: The same of an agent on a game.
ATARI_SCHEMA: Mapping[str, Any] = {
    "format": int,
    "cell": str,
    "seed": int,
    "game": str,
    "settings": {"agent": dict, "env": dict, "training": {"precision": str}},
    "protocol": {"steps": int, "episodes": int},
    "calls": _CALLS,
    "results": {"score": _NUMBER, "human_normalised": _NUMBER, "updates": int},
    "curve": {"step": [int], "score": [_NUMBER], "human_normalised": [_NUMBER]},
    "training_games": {"step": [int], "score": [_NUMBER]},
}
_CURVES = ("curve", "training_games")


def columns(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Return the rows of `ht_ray.vision.fit` by column, losses in six decimals."""
    return {
        name: [round(row[name], 6) if name.endswith("loss") else row[name] for row in rows] for name in SCHEMA["curve"]
    }


def read_records(folder: Path) -> tuple[Record, ...]:
    """Return the records in `folder`, ordered by cell and seed; none if there is no such folder.

    Raises
    ------
    SettingError
        If a file is no record, in one line with its name and the field that is wrong.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SettingError(f"{path} cannot be read as JSON ({error}).") from error
        _check(str(path), record, _schema(record))
        for name in _CURVES:
            if len({len(column) for column in record.get(name, {}).values()}) > 1:
                raise SettingError(f"{path}: {name}: the columns have different lengths.")
        if record["format"] != FORMAT:
            raise SettingError(f"{path}: format = {record['format']}: accepted is {FORMAT}.")
        if path.name != file_name(record):
            raise SettingError(f"{path} is the record of {file_name(record)}: give it that name.")
        records.append(record)
    return tuple(sorted(records, key=lambda record: (record["cell"], record["seed"])))


def write_record(folder: Path, record: Record) -> Path:
    """Write `record` into `folder`, a field or column a line, under a temporary name that is then changed.

    Raises
    ------
    SettingError
        If it is no record, or cannot be written.
    """
    path = folder / file_name(record)
    _check(str(path), record, _schema(record))
    write_text(path, _json(record))
    return path


def file_name(record: Record) -> str:
    """Return the name of a record's file."""
    return f"{record['cell']}-seed{record['seed']}.json"


def is_atari(record: Record) -> bool:
    """Return whether it is the record of an agent on a game, and not of a network on images."""
    return "game" in record


def _schema(record: object) -> Mapping[str, Any]:
    return ATARI_SCHEMA if isinstance(record, dict) and is_atari(record) else SCHEMA


def _json(record: Record) -> str:
    lines = []
    for name, value in record.items():
        if isinstance(value, dict):
            inner = [f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()]
            lines.append(f" {json.dumps(name)}: {{\n" + ",\n".join(inner) + "\n }")
        else:
            lines.append(f" {json.dumps(name)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _check(where: str, value: object, schema: Any) -> None:
    if isinstance(schema, Mapping):
        if not isinstance(value, Mapping):
            raise SettingError(f"{where}: expected an object, got {value!r:.60}.")
        if wrong := sorted(schema.keys() ^ value.keys()):
            kind = "is missing" if wrong[0] in schema else "is unknown"
            raise SettingError(f"{where}: {wrong[0]} {kind}.")
        for name, inner in schema.items():
            _check(f"{where}: {name}", value[name], inner)
    elif isinstance(schema, list):
        if not isinstance(value, list) or not value:
            raise SettingError(f"{where}: expected a list that is not empty, got {value!r:.60}.")
        for item in value:
            _check(where, item, schema[0])
    elif isinstance(value, bool) or not isinstance(value, schema):
        kinds = schema if isinstance(schema, tuple) else (schema,)
        raise SettingError(f"{where}: expected {' or '.join(kind.__name__ for kind in kinds)}, got {value!r:.60}.")
