"""Lists on the command line: methods, streams and indicators, and the settings of one of them."""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from ht_ray._checks import check_choice
from ht_ray._files import print_line
from ht_ray.errors import SettingError

__all__ = ["main"]

_WIDTH = 100


def main(arguments: Sequence[str], program: str) -> int:
    """Print the list that `program` names, or one of its entries; return 0, or 2 where there is no such entry."""
    listed, one = _LISTS[program.rpartition(" ")[2]]
    parser = argparse.ArgumentParser(prog=program, description=f"{one.__doc__} Without a name: all of them.")
    parser.add_argument("name", nargs="?", help="of the one to show")
    name = parser.parse_args(arguments).name
    try:
        lines = _table(listed()) if name is None else one(name)
    except SettingError as error:
        text = error.describe(lambda owner, field: program.rpartition(" ")[2].removesuffix("s"))
        print(f"{program}: error: {text}", file=sys.stderr)
        return 2
    print_line("\n".join(lines))
    return 0


def _table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows in columns, the last one wrapped."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    left = sum(widths) + 2 * len(widths)
    lines = []
    for *first, last in rows:
        start = "".join(f"{text:<{width}}  " for text, width in zip(first, widths, strict=True))
        wrapped = textwrap.wrap(last, max(_WIDTH - left, 30)) or [""]
        lines += [start + wrapped[0], *(" " * left + more for more in wrapped[1:])]
    return [line.rstrip() for line in lines]


def _first_sentence(owner: Any) -> str:
    return " ".join(inspect.cleandoc(owner.__doc__ or "").split("\n\n")[0].split()).replace("`", "")


def _methods() -> Iterable[Sequence[str]]:
    from ht_ray.methods import METHODS

    return [(name, method.title, _first_sentence(method)) for name, method in METHODS.items()]


def _method(name: str) -> list[str]:
    """Methods with their settings, by flags of the studies."""
    from ht_ray.methods import find_method, flat_names
    from ht_ray.methods.registry import all_settings

    method = find_method(name)
    known = all_settings()
    settings = [
        (f"  --{flat.replace('_', '-')}", f"{getattr(method.Settings(), own)}", known[flat].info.help)
        for flat, own in flat_names(method).items()
    ]
    head = [f"{method.name}: {method.title}", *textwrap.wrap(_first_sentence(method), _WIDTH), ""]
    return [
        *head,
        *_table([("  flag", "default", "meaning"), *settings] if settings else [("", "It has no settings.")]),
    ]


def _streams() -> Iterable[Sequence[str]]:
    from ht_ray.vision import STREAMS

    return [(name, _first_sentence(stream)) for name, stream in STREAMS.items()]


def _stream(name: str) -> list[str]:
    """Streams with their settings."""
    from ht_ray.vision import STREAMS

    stream: Any = STREAMS[check_choice("stream", name, STREAMS)]
    rows = [("  setting", "default")]
    for one in fields(stream):
        default = one.default if one.default_factory is MISSING else one.default_factory()
        rows.append((f"  {one.name}", "" if default is MISSING else str(default)))
    return [f"{name}: {_first_sentence(stream)}", "", *_table(rows)]


def _indicators() -> Iterable[Sequence[str]]:
    from ht_ray.diagnostics import INDICATORS

    return [(one.name, one.group, one.title) for one in INDICATORS.values()]


def _indicator(name: str) -> list[str]:
    """Indicators of plasticity, by group, with what they are and who reports them."""
    from ht_ray.diagnostics import INDICATORS

    one = INDICATORS[check_choice("indicator", name, INDICATORS)]
    ends = {"more": "more of it", "less": "less of it", "unclear": "unclear"}
    rows = [("group", one.group), ("is", one.definition), ("seen in networks that still learn", ends[one.plastic])]
    return [f"{one.name}: {one.title}", "", *_table([*rows, ("source", one.source)])]


_List = tuple[Callable[[], Iterable[Sequence[str]]], Callable[[str], list[str]]]
_LISTS: Mapping[str, _List] = {
    "methods": (_methods, _method),
    "streams": (_streams, _stream),
    "indicators": (_indicators, _indicator),
}
