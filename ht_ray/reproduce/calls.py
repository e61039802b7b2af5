"""Calls that train a run: where, with what and for how long, noted with what is underway."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import ht_ray
from ht_ray.cuda_graph import GraphMode
from ht_ray.report.data.files import write_text

__all__ = ["GRAPH", "noted_call"]

#: Whether steps are captured as CUDA graphs.
GRAPH: GraphMode = "auto"


@contextmanager
def noted_call(folder: Path, device: torch.device) -> Iterator[list[dict[str, Any]]]:
    """Note in `folder` that this call trains the run underway there, and for how long, unless the block raises."""
    calls_file = folder / "calls.json"
    calls: list[dict[str, Any]] = json.loads(calls_file.read_text()) if calls_file.exists() else []
    calls.append(_call(device))
    write_text(calls_file, json.dumps(calls))
    started = time.monotonic()
    yield calls
    calls[-1]["seconds"] = round(time.monotonic() - started, 1)
    write_text(calls_file, json.dumps(calls))


def _call(device: torch.device) -> dict[str, Any]:
    """Return where and with what a call of this process trains; ``seconds`` stay None if it is killed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} {device.type}"
    return {
        "device": name,
        "ht_ray": ht_ray.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "graph": GRAPH,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": None,
    }
