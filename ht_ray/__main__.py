"""Command ``ht-ray``: studies, reports, lists of what there is, and a diagnosis of a network."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from ht_ray import __version__
from ht_ray._checks import did_you_mean
from ht_ray._files import print_line

__all__ = ["COMMANDS", "main"]

#: What each command is for, and the module whose ``main(arguments, program)`` runs it, imported when it is asked for.
COMMANDS = {
    "ablation": ("tune_configs.ablation", "momentum x reset interval of Hare & Tortoise, and searches over both"),
    "continual": ("tune_configs.continual", "compare methods over the phases of a stream"),
    "warm-start": ("tune_configs.warm_start", "what training on a noisy part of the data first costs"),
    "atari100k": ("tune_configs.atari100k", "DrQ and BBF with Hare & Tortoise on Atari-100k"),
    "continual-rl": ("tune_configs.continual_rl", "methods of an agent over a stream of tasks"),
    "leaderboard": ("tune_configs.leaderboard", "all methods on several streams, tuned on equal terms"),
    "report": ("ht_ray.report.__main__", "tables, figures and one page of studies that were run"),
    "reproduce": ("ht_ray.reproduce.__main__", "run the next missing cells of the paper's tables"),
    "methods": ("ht_ray._listing", "list the methods, or the settings of one"),
    "streams": ("ht_ray._listing", "list the streams, or the settings of one"),
    "indicators": ("ht_ray._listing", "list the indicators of plasticity, or one of them"),
    "doctor": ("ht_ray.doctor", "say which signs of lost plasticity a network shows"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of the package.

    Parameters
    ----------
    arguments : sequence of str, optional
        The command and what follows it; ``sys.argv`` by default.

    Returns
    -------
    int
        The command's exit code; 2 where there is no such command.
    """
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print_line(_help())
        return 0
    if name == "--version":
        print(f"ht-ray {__version__}")
        return 0
    known = name.replace("_", "-")
    if known not in COMMANDS:
        text = f"ht-ray: error: {name!r}: accepted are {', '.join(COMMANDS)}.{did_you_mean(name, COMMANDS)}"
        print(text, file=sys.stderr)
        return 2
    code: int = import_module(COMMANDS[known][0]).main(rest, f"ht-ray {known}")
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: ht-ray COMMAND [--help] [...]",
        "",
        "Networks that keep learning: studies, reports, diagnosis.",
        "",
    ]
    lines += [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join([*lines, "", "ht-ray COMMAND --help says more of a command; --version prints the version."])


if __name__ == "__main__":
    sys.exit(main())
