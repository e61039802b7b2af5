"""Runs command lines in one process: ``python many_command_lines.py`` reads ``[[script, arguments], ...]`` as JSON.

Writes, as JSON, what each returned and printed, and which heavy packages were imported by then.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys


def run(script: str, arguments: list[str]) -> dict[str, object]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = importlib.import_module(f"tune_configs.{script}").main(arguments)
        except SystemExit as exit_:
            code = exit_.code
    heavy = [name for name in ("ray", "avalanche") if name in sys.modules]
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "heavy": heavy}


if __name__ == "__main__":
    print(json.dumps([run(script, arguments) for script, arguments in json.load(sys.stdin)]))
