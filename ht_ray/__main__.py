"""The command ``ht-ray``: what is run from the command line without a study."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of the package; return its exit code."""
    parser = argparse.ArgumentParser(
        prog="ht-ray", description="Hare & Tortoise networks, and what they are compared with."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("reproduce", help="run the next missing cells of the paper's tables", add_help=False)
    _, rest = parser.parse_known_args(arguments)
    from ht_ray.reproduce.__main__ import main as reproduce

    return reproduce(rest)


if __name__ == "__main__":
    sys.exit(main())
