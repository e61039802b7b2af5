"""The registry of methods: by name, by the path of a class, and from installed packages."""

from __future__ import annotations

import importlib
import pkgutil
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ht_ray._checks import did_you_mean, refused
from ht_ray._parts import load_part
from ht_ray.errors import SettingError, SettingWarning
from ht_ray.methods.settings import SettingInfo, declared

if TYPE_CHECKING:
    from ht_ray.methods.method import Method

__all__ = [
    "ENTRY_POINTS",
    "METHODS",
    "FlatSetting",
    "all_settings",
    "display_name",
    "find_method",
    "flat_names",
    "load_method",
    "method_parts",
    "old_names",
    "register",
    "split_methods",
    "tried_settings",
]

#: Group of entry points by which an installed package offers methods: ``my_method = "my_package.my_module:MyMethod"``.
ENTRY_POINTS = "ht_ray.methods"

_METHODS_PACKAGE = "ht_ray.methods"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
# A class by its path: "package.module:Class". What follows a name otherwise, after a colon, are settings: "l2:...=...".
_PART = re.compile(r"\s*(?:(?P<path>[A-Za-z_][\w.]*:[A-Za-z_]\w*)(?=\s*(?:$|[+:]))|(?P<name>[^+:]*))\s*")

M = TypeVar("M", bound="type[Method]")

_classes: dict[str, type[Method]] = {}
_discovered = False


def register(cls: M) -> M:
    """Make a method known by its name; a decorator of its class.

    Parameters
    ----------
    cls : type of Method
        With a `name` in lower case, a `title` and, if it has settings, a nested class ``Settings``.

    Raises
    ------
    SettingError
        If the name is none, or another class has it.
    TypeError
        If a field of its settings was not made by `setting`.
    """
    if not _NAME.fullmatch(cls.name) or not cls.title:
        raise SettingError(
            f"register({cls.__qualname__}): name = {cls.name!r}, title = {cls.title!r}: accepted are a name in lower "
            "case, as 'my_method', and a title."
        )
    held = _classes.get(cls.name)
    # The same class may be imported again under the same path, as when a module is reloaded.
    if held is not None and (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
        raise SettingError(
            f"register({cls.__qualname__}): name = {cls.name!r} is that of {held.__module__}.{held.__qualname__}: "
            "accepted is a name that no other method has."
        )
    declared(cls.Settings)
    _classes[cls.name] = cls
    return cls


def _discover() -> None:
    """Import this package's modules, and what installed packages offer; each registers its methods."""
    global _discovered
    if _discovered:
        return
    _discovered = True
    package = importlib.import_module(_METHODS_PACKAGE)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{_METHODS_PACKAGE}.{module.name}")
    for point in entry_points(group=ENTRY_POINTS):
        try:
            point.load()
        except Exception as error:  # of any package that is installed: it must not stop the others
            warnings.warn(
                f"the method {point.name!r} of the entry point {point.value!r} cannot be imported: {error!r}",
                SettingWarning,
                stacklevel=2,
            )


class _Registry(Mapping[str, "type[Method]"]):
    """Methods by name, in the order of the alphabet."""

    def __getitem__(self, name: str) -> type[Method]:
        _discover()
        return _classes[name]

    def __iter__(self) -> Iterator[str]:
        _discover()
        return iter(sorted(_classes))

    def __len__(self) -> int:
        _discover()
        return len(_classes)


METHODS: Mapping[str, type[Method]] = _Registry()
"""All methods that are known, by name."""


def load_method(path: str) -> type[Method]:
    """Return the method ``"package.module:Class"``, registered by its module or now.

    Raises
    ------
    SettingError
        If the module cannot be imported, or has no such method.
    """
    from ht_ray.methods.method import Method

    found = load_part("MethodConfig", "name", path)
    if not (isinstance(found, type) and issubclass(found, Method)):
        name = path.partition(":")[2]
        raise refused("MethodConfig.name", path, f": {name} is no class derived from ht_ray.methods.Method.")
    return found if _classes.get(found.name) is found else register(found)


def find_method(name: str) -> type[Method]:
    """Return the method of a name, of another name for it, or of a path ``"package.module:Class"``.

    Raises
    ------
    SettingError
        If there is none; the message says how to register one.

    Examples
    --------
    >>> find_method("L2-Init").name
    'regenerative'
    """
    if ":" in name:
        return load_method(name.strip())
    wanted = name.strip().replace("-", "_").lower()
    aliases = {alias: cls for cls in METHODS.values() for alias in cls.aliases}
    if wanted in METHODS:
        return METHODS[wanted]
    if wanted in aliases:
        return aliases[wanted]
    known = [*METHODS, *aliases]
    hint = did_you_mean(name, known)
    why = (
        f": accepted are {', '.join(map(repr, known))}.{hint} A method of your own is given as "
        "'package.module:Class', or registered with @ht_ray.methods.register."
    )
    raise refused("MethodConfig.name", name, why, hint=hint.strip())


def split_methods(text: str) -> tuple[list[str], str | None]:
    """Return the methods in ``"name+package.module:Class:setting=value"``, and what follows the last one's colon."""
    parts, position = [], 0
    while True:
        match = _PART.match(text, position)
        assert match is not None  # it may be empty
        head, _, _ = (match["path"] or "").partition(":")
        # What follows the name of a method is a setting, if only half of one.
        named = head in METHODS
        parts.append(head if named else (match["path"] or match["name"]).strip())
        position = match.start("path") + len(head) if named else match.end()
        if position == len(text):
            return parts, None
        if text[position] == ":":
            return parts, text[position + 1 :]
        position += 1


def method_parts(name: str) -> tuple[str, ...]:
    """Return the names of the methods that `name` combines with ``+``.

    Raises
    ------
    SettingError
        If it is no text, or one is unknown, given twice, or the combination makes no sense.

    Examples
    --------
    >>> method_parts("hare_tortoise+head_reset")
    ('hare_tortoise', 'head_reset')
    >>> method_parts("L2-Init")
    ('regenerative',)
    """
    if not isinstance(name, str):
        raise refused("MethodConfig.name", name, accepted="methods' names, as in 'hare_tortoise+redo'")
    texts, rest = split_methods(name)
    if rest is not None:
        find_method(name)
    parts = tuple(find_method(text).name for text in texts)
    why = None
    if len(set(parts)) < len(parts):
        why = ": a method is given twice."
    elif "plain" in parts and len(parts) > 1:
        why = ": 'plain' means none and combines with nothing."
    elif "ema" in parts and "hare_tortoise" in parts:
        why = ": 'ema' is 'hare_tortoise' without resets; accepted is one of the two."
    elif "ema" in parts and "self_distillation" in parts:
        why = ": the teacher of 'self_distillation' is an EMA already; leave 'ema' out."
    if why is not None:
        raise refused("MethodConfig.name", name, why)
    return parts


def display_name(name: str) -> str:
    """Return what tables and figures call the method.

    Examples
    --------
    >>> display_name("hare_tortoise+head_reset")
    'Hare & Tortoise + Head Reset'
    """
    return " + ".join(METHODS[part].title for part in method_parts(name))


def flat_names(cls: type[Method]) -> dict[str, str]:
    """Return the settings of a method by their names in `MethodConfig` and on command lines.

    Examples
    --------
    >>> flat_names(METHODS["redo"])["redo_threshold"]
    'threshold'
    """
    return {info.shared or f"{cls.name}_{name}": name for name, (_, info) in declared(cls.Settings).items()}


class FlatSetting(NamedTuple):
    """A setting as `MethodConfig` and command lines have it."""

    kind: Any
    """Its type."""
    default: Any
    """Its default, that of Hare & Tortoise where it is shared."""
    info: SettingInfo
    """What is declared of it."""
    methods: tuple[str, ...]
    """The methods that have it."""


def all_settings() -> dict[str, FlatSetting]:
    """Return every setting of every method, by its name in `MethodConfig`."""
    found: dict[str, FlatSetting] = {}
    # Where a setting is shared, Hare & Tortoise's default goes first.
    for cls in sorted(METHODS.values(), key=lambda cls: cls.name != "hare_tortoise"):
        own = declared(cls.Settings)
        defaults = {field.name: field.default for field in fields(cls.Settings)}
        for flat, name in flat_names(cls).items():
            one = found.get(flat, FlatSetting(own[name][0], defaults[name], own[name][1], ()))
            found[flat] = one._replace(methods=(*one.methods, cls.name))
    return found


def tried_settings(name: str, *, online: bool = False) -> list[dict[str, Any]]:
    """Return the settings to try where a method is tuned, at most four: each by their names in `MethodConfig`.

    Of a combination they are those of its first method that has any.

    Parameters
    ----------
    name
        Of the method, or of several joined by ``+``.
    online
        Whether each task is one epoch.

    Examples
    --------
    >>> tried_settings("layer_norm+l2")
    [{'l2_strength': 0.01}, {'l2_strength': 0.1}, {'l2_strength': 0.3}, {'l2_strength': 1.0}]
    """
    for part in method_parts(name):
        cls = METHODS[part]
        if tried := (online and cls.tried_online) or cls.tried:
            flat = {field: flat for flat, field in flat_names(cls).items()}
            return [{flat[field]: value for field, value in one.items()} for one in tried]
    return []


def old_names() -> dict[str, str]:
    """Return what settings in `MethodConfig` were called in earlier versions, and what they are called now."""
    return {old: flat for flat, one in all_settings().items() for old in one.info.was}
