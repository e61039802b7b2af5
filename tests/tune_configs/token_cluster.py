"""A cluster whose nodes are started as `ray start` does, which asks for a token and takes jobs."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = "7" * 64


@dataclass
class Head:
    """A cluster of one node that was started with `TOKEN`."""

    port: int
    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def user(self, token: str | None, mode: str = "token") -> dict[str, str]:
        """The environment of someone who has `token`, or none."""
        given = {} if token is None else {"RAY_AUTH_TOKEN": token}
        return {**self.environment, "RAY_AUTH_MODE": mode, **given}

    def job(self, command: str, *arguments: str, token: str | None = TOKEN, mode: str = "token") -> tuple[int, str]:
        """Run ``ray job COMMAND``, and return its exit code and what it printed."""
        ray = str(Path(sys.executable).with_name("ray"))
        done = subprocess.run(
            [ray, "job", command, "--address", self.url, *arguments],
            env=self.user(token, mode),
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
        )
        return done.returncode, done.stdout

    def client(self, code: str, token: str | None = TOKEN) -> tuple[int, str]:
        """Run Python code that has a `JobSubmissionClient` called ``client``."""
        begin = f"from ray.job_submission import JobSubmissionClient\nclient = JobSubmissionClient({self.url!r})\n"
        done = subprocess.run(
            [sys.executable, "-c", begin + code],
            env=self.user(token),
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
        )
        return done.returncode, done.stdout

    def wait_for(self, job: str) -> str:
        """Return how a job ended."""
        code = f"""
import time
while not client.get_job_status({job!r}).is_terminal():
    time.sleep(1)
print("ended:", client.get_job_status({job!r}).value)
"""
        _, out = self.client(code)
        return out.rpartition("ended: ")[2].strip()

    def jobs(self) -> set[str]:
        """The jobs there have been."""
        code, out = self.client("print('jobs:', *(job.submission_id for job in client.list_jobs()))")
        assert code == 0, out
        return set(out.rpartition("jobs:")[2].split())


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def end_all_of(session: str) -> None:
    """End what is left of the cluster whose files are in `session`."""
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if any(session in word for word in process.info["cmdline"] or ()):
            process.kill()


def status_of(url: str, token: str | None) -> int | None:
    """What the dashboard answers; None if it does not."""
    request = urllib.request.Request(url)
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@contextlib.contextmanager
def started(home: Path, *, cpus: tuple[int, ...] = (2,), **environment: str) -> Iterator[Head]:
    """Start a node for each number of CPUs, the first one the head; end them by their numbers, not by `ray stop`."""
    # The names of Ray's sockets have no room for a long folder. Each node has its own: one that unpacks a job's working
    # directory first removes what is there, and with it the directory in which the job runs on another node.
    session = tempfile.mkdtemp(prefix="htr-", dir="/tmp")
    port, dashboard, agent, client = free_ports(4)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "HT_RAY_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    found = Head(dashboard, home)
    # A home of its own has no token that somebody left there.
    found.environment = {**kept, "PATH": path, "HOME": str(home), "OMP_NUM_THREADS": "1"}
    found.environment["RAY_DASHBOARD_STARTUP_TIMEOUT_S"] = "170"
    found.environment.pop("PYTHONPATH", None)
    found.environment.update(environment)
    as_head = (
        f"--head --port {port} --dashboard-port {dashboard} --ray-client-server-port {client} --temp-dir {session}"
    )
    processes = []
    try:
        for number, count in enumerate(cpus):
            which = as_head if number == 0 else f"--address 127.0.0.1:{port}"
            log = home / f"ray-start-{number}.log"
            with log.open("w") as file:
                command = f"start {which} --block --num-cpus {count} --disable-usage-stats --node-ip-address 127.0.0.1"
                command += f" --temp-dir {session}/{number}"
                command += f" --dashboard-agent-listen-port {agent if number == 0 else free_ports(1)[0]}"
                process = subprocess.Popen(
                    [str(Path(sys.executable).with_name("ray")), *shlex.split(command)],
                    env=found.user(TOKEN),
                    cwd=home,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            processes.append(process)
            end = time.monotonic() + 180
            while status_of(f"{found.url}/api/version", TOKEN) != 200 or "Ray runtime started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(1)
        yield found
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
        end_all_of(session)
        shutil.rmtree(session, ignore_errors=True)
