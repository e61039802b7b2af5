"""Run the next missing cells of the paper's tables: ``ht-ray reproduce``, ``python -m ht_ray.reproduce``."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ht_ray._checks import check_choice, check_number
from ht_ray._device import check_device
from ht_ray.errors import SettingError
from ht_ray.report.data.files import print_line as say
from ht_ray.reproduce.cells import SEEDS, AtariCell, Cell, Run, all_cells, plan
from ht_ray.reproduce.page import write_page
from ht_ray.reproduce.records import Record, file_name, is_atari, read_records, write_record
from ht_ray.reproduce.run import Bench, Clock, DataSets, Timings, choose, forget, run_once
from ht_ray.vision import Diverged
from ht_ray.vision.data.dataset import user_cache

__all__ = ["main", "make_parser"]

_AnyCell = Cell | AtariCell

FOLDER = Path("docs") / "reproduction"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingError(message)


def make_parser() -> argparse.ArgumentParser:
    """Return what reads the command line; it refuses with `SettingError`."""
    parser = _Parser(
        prog="ht-ray reproduce",
        description="Run the next missing cells of the paper's tables, and write their records and the page of all. "
        "What does not fit into the time is left where it is, and goes on at the next call.",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="stop after so many minutes (default: 8)")
    parser.add_argument("--only", nargs="+", metavar="CELL", help="these cells, in this order; see --list")
    parser.add_argument("--list", action="store_true", help="print the cells in the order of their worth, run nothing")
    parser.add_argument(
        "--add", metavar="STUDY", help="add the finished runs of an Atari study's directory, run nothing; see --machine"
    )
    parser.add_argument("--machine", help="kind of machine that the study of --add ran on, as 'x86_64 cpu'")
    parser.add_argument("--page", action="store_true", help="make the page from the records, run nothing")
    parser.add_argument(
        "--data-root",
        default=os.environ.get("HT_RAY_DATA"),
        help="folder of the images, see DataConfig.root (default: $HT_RAY_DATA)",
    )
    parser.add_argument("--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1")
    parser.add_argument(
        "--out", type=Path, help=f"folder of the records and the page (default: {FOLDER}, which must exist)"
    )
    parser.add_argument("--checkpoints", type=Path, help="folder of what is underway (default: in the user's cache)")
    return parser


def main(arguments: Sequence[str] | None = None, program: str = "ht-ray reproduce") -> int:
    """Run the command line; return 0, 1 if a run diverged, 2 for settings that cannot work, 128 + a signal's number."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without "±"
    try:
        return _run(make_parser().parse_args(arguments))
    except (SettingError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2


def _run(chosen: argparse.Namespace) -> int:
    check_number("--minutes", chosen.minutes, low=0, low_open=True)
    clock = Clock(60 * chosen.minutes)
    cells = _cells(chosen.only)
    device = check_device("--device", chosen.device)
    out = _out(chosen.out, reads=chosen.list)
    records = read_records(out)
    known = {cell.id for cell in all_cells()}
    for record in records:
        check_choice(f"{out / file_name(record)}: cell", record["cell"], known)
    if chosen.list:
        _list(cells, records)
        return 0
    if (chosen.add is None) != (chosen.machine is None):
        raise SettingError("--add and --machine: accepted are both, or none.")
    if chosen.add is not None:
        _add(chosen.add, chosen.machine, cells, records, out)
    if chosen.page or chosen.add is not None:
        say(f"wrote {write_page(out)}")
        return 0
    checkpoints = chosen.checkpoints or user_cache("--checkpoints") / "reproduce"
    bench = Bench(device, DataSets(chosen.data_root), checkpoints, clock)
    with _asked_to_stop(clock) as signals:
        diverged = _work(cells, bench, out)
    return 128 + signals[0] if signals else int(diverged)


def _work(cells: Sequence[_AnyCell], bench: Bench, out: Path) -> bool:
    timings = Timings(bench)
    failed: set[str] = set()
    while bench.clock.left:
        finished = {Run(cell, record["seed"]).id for cell, record in _found(cells, out)}
        missing = plan(cells, finished | failed)
        if not missing:
            say("nothing is missing")
            break
        run = choose(missing, bench, timings, say)
        if run is None:
            break
        try:
            record = run_once(run, bench)
        except Diverged as error:
            say(f"{run.id}: {error}")
            failed.add(run.id)
            continue
        if record is None:
            say(f"{run.id}: left underway in {bench.folder(run)}")
            break
        path = write_record(out, record)
        forget(run, bench)
        write_page(out)
        say(f"{path}: {_described(record)}")
    return bool(failed)


def _described(record: Record) -> str:
    results = record["results"]
    if is_atari(record):
        return f"score {results['score']:g}, human-normalised {results['human_normalised']:.3f}"
    return f"test {results['final_accuracy']:.4f}, training {results['final_train_accuracy']:.4f}"


def _add(study: str, machine: str, cells: Sequence[_AnyCell], records: Sequence[Record], out: Path) -> None:
    games = [cell for cell in cells if isinstance(cell, AtariCell)]
    for cell in games[:1]:
        cell.check_available()
    from ht_ray.reproduce.atari import study_records

    there = {file_name(record) for record in records}
    for found in study_records(study, machine, games):
        if isinstance(found, str):
            say(f"left out: {found}")
        elif file_name(found) in there:
            say(f"left out: {out / file_name(found)} is there already")
        else:
            say(f"{write_record(out, found)}: {_described(found)}")


def _found(cells: Sequence[_AnyCell], out: Path) -> Iterator[tuple[_AnyCell, Record]]:
    by_id = {cell.id: cell for cell in cells}
    for record in read_records(out):
        if record["cell"] in by_id:
            yield by_id[record["cell"]], record


def _list(cells: Sequence[_AnyCell], records: Sequence[Record]) -> None:
    for cell in cells:
        seeds = [record["seed"] for record in records if record["cell"] == cell.id]
        say(f"{cell.id:50s} {len(seeds)} of {SEEDS[cell.data]} seeds")


def _cells(only: Sequence[str] | None) -> tuple[_AnyCell, ...]:
    cells = {cell.id: cell for cell in all_cells()}
    if only is None:
        return tuple(cells.values())
    for name in only:
        if name not in cells:
            check_choice("--only", name, cells)
    return tuple(cells[name] for name in dict.fromkeys(only))


def _out(folder: Path | None, *, reads: bool) -> Path:
    if folder is None and not (reads or FOLDER.is_dir()):
        raise SettingError(f"--out is not given and there is no {FOLDER} here: accepted is a folder for the records.")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise SettingError(f"--out = {str(folder)!r} is a file: accepted is a folder for the records.")
    return folder or FOLDER


@contextmanager
def _asked_to_stop(clock: Clock) -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM end training after the epoch or step that runs; a second one ends the process as usual."""
    seen: list[int] = []
    handled = (signal.SIGINT, signal.SIGTERM)

    def ask(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        clock.ask()
        for one in handled:
            signal.signal(one, before[one])

    before = {one: signal.signal(one, ask) for one in handled}
    try:
        yield seen
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


if __name__ == "__main__":
    sys.exit(main())
