"""Runs command lines in one process: ``python many_command_lines.py`` reads ``[[script, arguments], ...]`` as JSON.

Writes, as JSON, what each returned and printed, and which heavy packages were imported by then. With ``--before-ray``
each ends where Ray would be started, and returns "ray".
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
import traceback


def run(script: str, arguments: list[str]) -> dict[str, object]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = importlib.import_module(f"tune_configs.{script}").main(arguments)
        except SystemExit as exit_:
            code = exit_.code
        except Exception:
            code = traceback.format_exc()
    heavy = [name for name in ("ray", "avalanche") if name in sys.modules]
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy}


def _ray(*arguments: object, **settings: object) -> None:
    sys.exit("ray")


if __name__ == "__main__":
    if "--before-ray" in sys.argv:
        importlib.import_module("tune_configs.command_line").run_study = _ray
    print(json.dumps([run(script, arguments) for script, arguments in json.load(sys.stdin)]))
