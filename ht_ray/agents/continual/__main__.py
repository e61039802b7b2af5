"""The command ``python -m ht_ray.agents.continual``: methods compared over a stream of tasks, without Ray.

    python -m ht_ray.agents.continual --stream control --methods plain hare_tortoise --seeds 2 --record runs.jsonl

Seeds are the outer loop, so that a comparison that is stopped has whole seeds; started again with the same record it
goes on with the runs that are not in it yet.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

from ht_ray.agents.continual.measures import measure
from ht_ray.agents.continual.methods import agent_with, method_label, with_methods
from ht_ray.agents.continual.run import ContinualRun
from ht_ray.agents.continual.streams import TASK_STREAMS, task_stream_config
from ht_ray.agents.registry import AGENT_VARIANTS
from ht_ray.errors import Diverged, SettingError
from ht_ray.methods.config import parse_value

__all__ = ["main", "make_parser"]

_STREAM = "stream_setting:"
#: How a line of a record begins.
_ROW = b'{"method": "'


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ht_ray.agents.continual", description="Compare methods of an agent over a stream of tasks."
    )
    parser.add_argument("--stream", default="control", help=", ".join(TASK_STREAMS))
    parser.add_argument("--variant", default="dqn", help=f"the plain agent: {', '.join(AGENT_VARIANTS)}")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the agent, such as learning_rate=3e-3"
    )
    parser.add_argument(
        "--methods", nargs="+", default=["plain", "hare_tortoise"], help="names, joined by + and with settings behind :"
    )
    parser.add_argument("--interval", type=int, help="gradient steps between resets (default: those of a visit)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--replay", default="clear", choices=("clear", "keep"))
    parser.add_argument("--evaluation-episodes", type=int, default=5, help="before and after each visit (default: 5)")
    parser.add_argument("--indicators", action="store_true", help="measure plasticity indicators after each visit")
    parser.add_argument("--record", type=Path, help="a file of JSON lines, one for each run; gone on with if it exists")
    settings = parser.add_argument_group("stream", "Settings of the stream; one of another stream is refused.")
    known = dict.fromkeys(field.name for config in TASK_STREAMS.values() for field in fields(config))
    for name in known:
        defaults = {
            stream: field.default
            for stream, config in TASK_STREAMS.items()
            for field in fields(config)
            if field.name == name and field.default is not MISSING
        }
        settings.add_argument(
            f"--{name.replace('_', '-')}",
            dest=f"{_STREAM}{name}",
            default=argparse.SUPPRESS,
            nargs="+" if any(isinstance(value, tuple) for value in defaults.values()) else None,
            metavar="VALUE",
            help="; ".join(f"{stream}: {_shown(value)}" for stream, value in defaults.items()),
        )
    return parser


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parsed(given: str | list[str]) -> Any:
    """Return a value, or those of a setting that takes several: apart, as the studies have them, or with commas."""
    if isinstance(given, str):
        return parse_value(given)
    return tuple(parse_value(piece) for text in given for piece in text.split(","))


def _done(path: Path | None, run: dict[str, Any]) -> set[tuple[str, int]]:
    """Return method and seed of the runs in a record, which must be of the same comparison.

    A last line that a kill has cut short is taken off the file, so that the next one begins a line.
    """
    if path is None or not path.exists():
        return set()
    done, whole = set(), 0
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            saved = json.loads(line)
            there, method, seed = saved["run"], saved["method"], saved["seed"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith(b"\n") and line.startswith(_ROW[: len(line)]):
                print(f"--record {path}: its last line was cut off: that run is done again.", file=sys.stderr)
                os.truncate(path, whole)
                break
            raise SettingError(
                f"--record {path}: line {number} is damaged, or no record of this command; the file is kept as it is."
            ) from error
        if there != run:
            raise SettingError(f"--record {path}: it is of another comparison; give another name, or move it away.")
        done.add((method, seed))
        whole += len(line)
        if not line.endswith(b"\n"):
            with path.open("ab") as file:
                file.write(b"\n")
    return done


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    given = vars(make_parser().parse_args(arguments))
    own = {name.removeprefix(_STREAM): given.pop(name) for name in list(given) if name.startswith(_STREAM)}
    path: Path | None = given["record"]
    options = {name: given[name] for name in ("replay", "evaluation_episodes", "indicators")}
    try:
        stream = task_stream_config(given["stream"], **{name: _parsed(text) for name, text in own.items()})
        base = agent_with(given["variant"], given["set"])
        interval = given["interval"] or stream.visit_steps * base.updates_per_step
        agents = {text: with_methods(base, text, interval=interval) for text in given["methods"]}
        seeds = range(given["first_seed"], given["first_seed"] + given["seeds"])
        run = json.loads(json.dumps({"stream": {"name": stream.name, **asdict(stream)}, "agent": asdict(base)}))
        run |= {**options, "interval": interval}
        done = _done(path, run)
        if path is not None and not path.parent.is_dir():
            raise SettingError(f"--record {path}: there is no folder {path.parent} to write to.")
        for seed in seeds:
            for text, config in agents.items():
                if (text, seed) in done:
                    continue
                made = ContinualRun(stream, replace(config), seed=seed, **options)
                while made.advance():
                    pass
                record = made.record
                summary = measure(record.visits, tasks=len(record.tasks), cycles=stream.cycles).summary()
                shown = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in summary.items())
                print(f"{text}, seed {seed}: {shown}", flush=True)
                if path is not None:
                    row = {"method": text, "label": method_label(text), "seed": seed, "run": run, "summary": summary}
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({**row, "record": asdict(record)}) + "\n")
    except SettingError as error:
        print(error, file=sys.stderr)
        return 2
    except Diverged as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
