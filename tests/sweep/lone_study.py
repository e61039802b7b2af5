"""A driver that starts a Ray of its own: ``python lone_study.py study DIRECTORY`` or ``python lone_study.py fail N``.

Writes, as JSON, what the tests look at.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from sweep_trials import spec, study

from ht_ray.sweep import RayStartError, SweepConfig, run_study
from ht_ray.sweep.driver.local_ray import local_ray, start_ray
from ht_ray.sweep.records.progress import Console
from ht_ray.sweep.worker.drain_node import _drain, raylets


def descendants() -> list[int]:
    """This process, and all that descend from it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
    found = [os.getpid()]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def listening() -> list[tuple[str, str]]:
    """The names of those processes, with the addresses they listen on."""
    addresses = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # LISTEN
                raw = bytes.fromhex(fields[1].split(":")[0])
                words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                addresses[fields[9]] = str(ipaddress.ip_address(words))
    found = []
    for pid in descendants():
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    kind, _, inode = str(entry.readlink()).partition(":")
                    if kind == "socket" and inode.strip("[]") in addresses:
                        found.append((name, addresses[inode.strip("[]")]))
    return found


def of_a_study(directory: Path) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def look(_: Path) -> None:
        # The agents come some seconds after all else.
        end = time.monotonic() + 120
        while len(listening()) < 8 and time.monotonic() < end:
            time.sleep(0.5)
        seen["listening"] = listening()
        seen["processes"] = len(descendants())
        (node,) = [raylet for raylet in raylets() if raylet.pid in descendants()]
        draining = _drain(node, 5)
        out, _ = draining.communicate()
        seen["drained"] = (draining.returncode, out)

    output = io.StringIO()
    # Everything that is made readable by all would be so.
    os.umask(0)
    config = SweepConfig(results_dir=str(directory), tensorboard="none")
    os.environ.pop("OMP_NUM_THREADS", None)
    seeing = study(spec("one"), factory="sweep_trials:Seeing", metric="waited")
    result = run_study(seeing, config, console=Console(output), finish=look)
    seen["summary"] = json.loads((directory / "trials" / "one" / "results.jsonl").read_text())["summary"]
    seen["kept"] = "OMP_NUM_THREADS" in os.environ
    return {**seen, "exit_code": result.exit_code, "told": output.getvalue()}


def of_failures(number: int) -> dict[str, Any]:
    """Let so many starts fail once all but the raylet runs."""
    import ray
    from ray._private import services

    plain, begun = services.start_raylet, []

    def fails(*arguments: Any, **settings: Any) -> Any:
        begun.append(len(descendants()))
        if len(begun) <= number:
            raise Exception("The current node timed out during startup.")
        return plain(*arguments, **settings)

    services.start_raylet = fails
    said: list[str] = []
    error = None
    try:
        start_ray(
            lambda: ray.init(address="local", include_dashboard=False, log_to_driver=False),
            say=said.append,
            pauses=(0.1, 0.2),
        )
    except RayStartError as raised:
        error = str(raised)
    sessions = sorted(path.name for path in Path(os.environ["RAY_TMPDIR"], "ray").glob("session_2*"))
    left = len(descendants())
    ray.shutdown()
    return {"begun": begun, "said": said, "error": error, "sessions": sessions, "left": left}


def of_late_agents(seconds: int) -> dict[str, Any]:
    """Start where the agents, which are Python processes, begin so many seconds late."""
    late = Path(os.environ["RAY_TMPDIR"], "late")
    late.mkdir()
    (late / "sitecustomize.py").write_text(
        "import time\n"
        "if 'agent' in open('/proc/self/cmdline').read().replace(chr(0), ' ').split('--')[0]:\n"
        f"    open({str(late)!r} + '/seen', 'a').write('x')\n"
        f"    time.sleep({seconds})\n"
    )
    os.environ["PYTHONPATH"] = f"{late}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    said: list[str] = []
    with local_ray(said.append):
        seen = len((late / "seen").read_text())
    return {"said": said, "seen": seen}


if __name__ == "__main__":
    what, value = sys.argv[1:]
    if what == "study":
        found = of_a_study(Path(value))
    elif what == "fail":
        found = of_failures(int(value))
    else:
        found = of_late_agents(int(value))
    print(json.dumps(found))
