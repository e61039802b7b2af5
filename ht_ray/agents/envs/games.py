"""Games of Atari-100k: the 26, by name."""

from __future__ import annotations

import re

from ht_ray._checks import did_you_mean
from ht_ray.errors import SettingError

__all__ = ["ATARI_100K_GAMES", "game_name", "rom_name"]

ATARI_100K_GAMES = (
    "Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone", "Boxing", "Breakout", "ChopperCommand",
    "CrazyClimber", "DemonAttack", "Freeway", "Frostbite", "Gopher", "Hero", "Jamesbond", "Kangaroo", "Krull",
    "KungFuMaster", "MsPacman", "Pong", "PrivateEye", "Qbert", "RoadRunner", "Seaquest", "UpNDown",
)  # fmt: skip
"""The games of Atari-100k, as the literature spells them (Kaiser et al. 2020, arXiv 1903.00374)."""

_BY_LETTERS = {name.lower(): name for name in ATARI_100K_GAMES}


def game_name(name: str) -> str:
    """Return the name of one of the 26 games, however it is written.

    Parameters
    ----------
    name : str
        ``"MsPacman"``, ``"ms_pacman"``, or an environment's name: ``"ALE/MsPacman-v5"``.

    Raises
    ------
    SettingError
        If it is none of them; the message has the nearest.

    Examples
    --------
    >>> game_name("ms_pacman"), game_name("ALE/Pong-v5"), game_name("BreakoutNoFrameskip-v4")
    ('MsPacman', 'Pong', 'Breakout')
    >>> game_name("Breakuot")
    Traceback (most recent call last):
    ...
    ht_ray.errors.SettingError: game = 'Breakuot': accepted are the 26 games of Atari-100k. Did you mean 'Breakout'?
    """
    bare = re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", str(name)).removeprefix("ALE/")
    letters = re.sub(r"[^a-z]", "", bare.lower())
    if letters not in _BY_LETTERS:
        raise SettingError(
            f"game = {name!r}: accepted are the 26 games of Atari-100k.{did_you_mean(bare, ATARI_100K_GAMES)}"
        )
    return _BY_LETTERS[letters]


def rom_name(name: str) -> str:
    """Return what ale_py calls the game's ROM.

    Raises
    ------
    SettingError
        If `name` is none of the 26 games.

    Examples
    --------
    >>> rom_name("UpNDown")
    'up_n_down'
    """
    return re.sub(r"(?<!^)(?=[A-Z])", "_", game_name(name)).lower()
