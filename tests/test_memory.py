"""Freed memory that a worker keeps: counted in page faults, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# What steps do: take blocks of 1 MiB, write to them, free them all.
_STEPS = """
import ctypes, resource, sys
from ht_ray._memory import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = libc.memset.argtypes = None
def step():
    blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(1 << 20))) for _ in range(20)]
    for block in blocks:
        libc.memset(block, 1, ctypes.c_size_t(1 << 20))
    for block in blocks:
        libc.free(block)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def steps(how: str, **environment: str) -> tuple[str, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", _STEPS, how]
    done = subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


def test_steps_take_again_what_was_freed() -> None:
    (_, without), (kept, faults) = steps("leave"), steps("keep")
    assert kept == "True"
    assert without > 20 * 1000, "glibc by itself gives 20 MiB back after each step, of 4 KiB pages"
    assert faults < 1000


def test_limits_in_the_environment_stay() -> None:
    kept, faults = steps("keep", MALLOC_TRIM_THRESHOLD_="65536", MALLOC_MMAP_THRESHOLD_="65536")
    assert kept == "False"
    assert faults > 20 * 1000


def test_what_the_page_on_packs_names_does_the_same() -> None:
    kept, faults = steps("leave", MALLOC_TRIM_THRESHOLD_="134217728", MALLOC_MMAP_THRESHOLD_="33554432")
    assert kept == "None"
    assert faults < 1000
