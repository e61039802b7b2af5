"""Random draws that can be repeated one by one.

Every draw comes from a generator derived from what it is for: ``(seed, purpose, phase, epoch)``. Nothing depends on
how many numbers were drawn before, so a run that is resumed in its middle draws what the uninterrupted run drew,
and evaluation or logging cannot shift what training sees.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["derive_seed", "generator", "isolated_rng"]


def derive_seed(seed: int, purpose: str, *position: int) -> int:
    """Return a 63-bit seed for one `purpose` at one `position`.

    Parameters
    ----------
    seed
        The run's seed.
    purpose
        What is drawn, e.g. ``"shuffle"``, ``"label noise"``.
    *position
        Where in the run it is drawn, usually phase and epoch.

    Examples
    --------
    >>> derive_seed(0, "shuffle", 1, 2) == derive_seed(0, "shuffle", 1, 2)
    True
    >>> derive_seed(0, "shuffle", 1, 2) == derive_seed(0, "shuffle", 12)
    False
    """
    text = "\x1f".join([str(int(seed)), purpose, *(str(int(p)) for p in position)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, purpose: str, *position: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator for one `purpose` at one `position` (see `derive_seed`)."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, *position))


@contextmanager
def isolated_rng(seed: int | None = None) -> Iterator[None]:
    """Run a block with torch's global generators seeded, and put them back afterwards.

    For code that can only draw from the global generators: layers' initialisers, dropout. The CPU generator and, if
    CUDA is in use already, those of all CUDA devices are seeded and restored. With ``seed=None`` the block draws from
    the present state; only the restoring happens.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call,unused-ignore]
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            # torch.manual_seed would also seed the generators of devices not in use yet, which nothing would restore.
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.manual_seed_all(seed)
        yield
