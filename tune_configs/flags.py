"""Flags of the studies: the fields of their settings, with types, defaults and texts as those have them."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, is_dataclass, make_dataclass
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro

__all__ = [
    "Flag",
    "current_flags",
    "default_of",
    "flag_name",
    "flags_of",
    "help_page",
    "help_texts",
    "parse_flags",
    "readable_type",
]

_WIDTH = 100
_COLUMN = 30


class Flag(NamedTuple):
    """A setting as the command line has it."""

    name: str
    """The field's."""
    kind: Any
    """Its type."""
    default: Any
    """Its default."""
    help: str
    """What it means."""
    section: str
    """The title that it stands under in ``--help``."""
    choices: tuple[str, ...] = ()
    """What is accepted, where the type does not say so."""


def flag_name(name: str) -> str:
    """Return the flag of a field: ``--batch-size`` of ``batch_size``."""
    return "--" + name.replace("_", "-")


def default_of(one: Field[Any]) -> Any:
    """Return the default of a field."""
    return one.default if one.default_factory is MISSING else one.default_factory()


def flags_of(config: type[Any], section: str, sections: Mapping[type[Any], str] | None = None) -> list[Flag]:
    """Return the flags of a dataclass, by section.

    Parameters
    ----------
    config
        The dataclass. A field's metadata may have its ``help``, ``section`` and ``choices``, and ``flag=False``.
    section
        The title of its own fields.
    sections
        The titles of fields that some of its bases have.
    """
    hints, texts = get_type_hints(config), help_texts(config)
    bases = {name: title for base, title in (sections or {}).items() for name in base.__dataclass_fields__}
    found = [
        Flag(
            one.name,
            hints[one.name],
            default_of(one),
            texts.get(one.name, ""),
            one.metadata.get("section", bases.get(one.name, section)),
            tuple(one.metadata.get("choices", ())),
        )
        for one in fields(config)
        if one.metadata.get("flag", True)
    ]
    titles = list(dict.fromkeys([section, *(flag.section for flag in found)]))
    return sorted(found, key=lambda flag: titles.index(flag.section))


def help_texts(config: type[Any]) -> dict[str, str]:
    """Return what each field of a dataclass means, in one paragraph.

    That is in its metadata, in the text below it, in the comment ``#:`` above it, or in its class's docstring.
    """
    found: dict[str, str] = {}
    for base in reversed(config.__mro__):
        if is_dataclass(base):
            found |= _documented(base)
            found |= {one.name: one.metadata["help"] for one in fields(base) if "help" in one.metadata}
    return {name: _paragraph(text) for name, text in found.items()}


# A command line asks for the same classes several times, and finding one in its file takes long.
@functools.lru_cache(maxsize=128)
def _documented(config: type[Any]) -> dict[str, str]:
    found = dict(_attributes(inspect.cleandoc(config.__doc__ or "")))
    try:
        lines = textwrap.dedent(inspect.getsource(config)).splitlines()
    except OSError:  # it was made by a program
        return found
    (body,) = ast.parse("\n".join(lines)).body
    assert isinstance(body, ast.ClassDef)
    above = ""
    for statement, following in zip(body.body, [*body.body[1:], None], strict=True):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        start = end = statement.lineno - 1
        while lines[start - 1].strip().startswith("#:"):
            start -= 1
        # Two fields may have one comment.
        above = " ".join(line.strip().removeprefix("#:") for line in lines[start:end]) or above
        below = following.value if isinstance(following, ast.Expr) else None
        if isinstance(below, ast.Constant) and isinstance(below.value, str):
            found[statement.target.id] = below.value
        elif above:
            found.setdefault(statement.target.id, above)
    return found


def _attributes(docstring: str) -> Iterator[tuple[str, str]]:
    section = re.search(r"^Attributes\n-+\n(.*?)(?=^\w+\n-+$|\Z)", docstring, re.MULTILINE | re.DOTALL)
    for names, text in re.findall(r"^(\S.*)\n((?:    .*\n?|\n)+)", section[1] if section else "", re.MULTILINE):
        for name in names.partition(" : ")[0].split(","):
            yield name.strip(), textwrap.dedent(text)


def _paragraph(text: str) -> str:
    """Return the whole sentences of the first paragraph, on one line."""
    first = " ".join(re.split(r"\n\s*\n", text.strip())[0].replace("`", "").split())
    return first if first.endswith((".", ")")) else first[: first.rfind(". ") + 1] or f"{first}."


# --- what is shown


def help_page(
    program: str, description: str, flags: Sequence[Flag], values: Mapping[str, Any], most_used: Sequence[str] | None
) -> str:
    """Return the text of ``--help``: what the study is about, then the flags with the values that they will have.

    Parameters
    ----------
    program
        What the command is called.
    description
        Of the study, in paragraphs.
    flags
        All of them.
    values
        Values that go before the flags' defaults: what other flags imply.
    most_used
        Names of the only flags to show, in this order; None for all.
    """
    shown = list(flags)
    if most_used is not None:
        by_name = {flag.name: flag for flag in flags}
        shown = [by_name[one]._replace(section="Flags that most studies need") for one in most_used]
    lines = [f"usage: {program} [--FLAG VALUE ...]", ""]
    for paragraph in re.split(r"\n\s*\n", description.strip()):
        lines += [*textwrap.wrap(" ".join(paragraph.replace("``", "").split()), _WIDTH, break_on_hyphens=False), ""]
    for section in dict.fromkeys(flag.section for flag in shown):
        lines.append(section)
        for flag in shown:
            if flag.section == section:
                lines += _entry(flag, values.get(flag.name, flag.default))
        lines.append("")
    if most_used is None:
        lines.append("--help shows the flags that most studies need.")
    else:
        lines.append(f"--help-all shows all {len(flags)} flags.")
    return "\n".join(lines)


def _entry(flag: Flag, value: Any) -> list[str]:
    # As many sentences as two lines or so hold, and one at least; the rest is in the documents.
    help_, *more = re.split(r"(?<=[a-z)]\.) ", flag.help.replace("`", ""))
    while more and len(help_) + len(more[0]) < _WIDTH + _COLUMN:
        help_ += f" {more.pop(0)}"
    if _kinds(flag.kind) == (bool,):
        left = f"  {flag_name(flag.name)}, {flag_name(f'no_{flag.name}')}"
    else:
        left = f"  {flag_name(flag.name)} {_metavar(flag)}"
        if len(left) > _WIDTH:  # the choices get lines of their own
            left = f"  {flag_name(flag.name)} NAME"
            help_ += f" One of {_metavar(flag).strip('{}').replace(',', ', ')}."
    text = textwrap.wrap(f"{help_} (default: {_shown(value)})", _WIDTH - _COLUMN, break_on_hyphens=False)
    same_line = [text.pop(0)] if len(left) < _COLUMN - 1 else []
    return [(left.ljust(_COLUMN) + "".join(same_line)).rstrip(), *(" " * _COLUMN + line for line in text)]


def _shown(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(map(_shown, value)) or "none at all"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _metavar(flag: Flag) -> str:
    return "|".join(_word(kind, flag.choices) for kind in _kinds(flag.kind)) or "VALUE"


def _word(kind: Any, choices: tuple[str, ...]) -> str:
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        if Ellipsis in arguments:
            return f"{_word(arguments[0], choices)} ..."
        return " ".join(_word(one, choices) for one in arguments)
    if get_origin(kind) is Literal:
        choices = arguments
    return f"{{{','.join(choices)}}}" if choices else {int: "INT", float: "FLOAT"}.get(kind, "TEXT")


def _kinds(kind: Any) -> tuple[Any, ...]:
    """Return the types that a value may have, but for None."""
    if get_origin(kind) not in (Union, UnionType):
        return (kind,)
    return tuple(one for one in get_args(kind) if one is not NoneType)


# --- what is read


def current_flags(arguments: Sequence[str], renamed: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return a command line with the present names of flags that were renamed, and a sentence for each.

    Examples
    --------
    >>> current_flags(["--perturb", "0.1"], {"perturb": "shrink_perturb_perturb"})[0]
    ['--shrink-perturb-perturb', '0.1']
    """
    found, sentences = [], []
    for argument in arguments:
        given, equals, value = argument.partition("=")
        name = given.removeprefix("--").replace("-", "_")
        negation = "no_" if name.startswith("no_") else ""
        new = renamed.get(name.removeprefix(negation)) if given.startswith("--") else None
        if new is None:
            found.append(argument)
            continue
        now = flag_name(negation + new)
        found.append(now + equals + value)
        sentences.append(f"{given} is called {now} now; the old name goes with the next minor version.")
    return found, sentences


def parse_flags(
    program: str, arguments: Sequence[str], flags: Sequence[Flag], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values of flags; `values` go before the flags' defaults.

    What cannot be read at all ends the program with status 2. Values are checked by whoever makes settings of them, so
    that they are refused in our words and not the parser's.
    """
    made = [
        (
            flag.name,
            Annotated[readable_type(flag.kind), tyro.conf.arg(help=flag.help)],
            field(default=values[flag.name]),
        )
        for flag in flags
    ]
    parsed: Any = tyro.cli(make_dataclass("Flags", made), args=arguments, prog=program, add_help=False)
    return dict(vars(parsed))


def readable_type(kind: Any) -> Any:
    """Return a type with any text in place of choices."""
    if get_origin(kind) is Literal:
        return str
    if get_origin(kind) in (Union, UnionType):
        return Union[tuple(readable_type(one) for one in get_args(kind))]  # noqa: UP007
    if get_origin(kind) is tuple:
        return GenericAlias(tuple, tuple(one if one is Ellipsis else readable_type(one) for one in get_args(kind)))
    return kind
