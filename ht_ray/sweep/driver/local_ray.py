"""A Ray of one's own on this machine: started where the machine is busy, too, and ended with all that it left.

Importing this module does not import Ray. What it needs of Ray's private names is in `_steady_nodes`, and does
without where one is gone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import secrets
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

from ht_ray.errors import SettingError
from ht_ray.sweep.worker import late_start, setup_worker
from ht_ray.sweep.worker.processes import process_texts

__all__ = ["RayStartError", "local_ray", "start_ray"]

T = TypeVar("T")

_PAUSES = (5.0, 20.0)
# How long processes have to end by themselves, and how long killed ones are waited for.
_GRACE = 5.0
_REAPED = 10.0
# Seconds after which a node's agents are started; Ray waits 30 for one that is needed.
_AGENTS_AFTER = 10.0

# What a node's agents listen on: the setting, and its name in `ray._raylet`.
_AGENT_PORTS = {
    "metrics_agent_port": "METRICS_AGENT_PORT_NAME",
    "metrics_export_port": "METRICS_EXPORT_PORT_NAME",
    "dashboard_agent_listen_port": "DASHBOARD_AGENT_LISTEN_PORT_NAME",
    "runtime_env_agent_port": "RUNTIME_ENV_AGENT_PORT_NAME",
}


class RayStartError(RuntimeError):
    """Ray did not start on this machine.

    Command lines print its message, without a traceback, and exit with status 75: the same may work later.
    """


@contextmanager
def local_ray(
    say: Callable[[str], None],
    *,
    keep_logs: Callable[[], bool] = lambda: False,
    workers: int | None = None,
    **settings: Any,
) -> Iterator[None]:
    """Have a Ray of this process running, which only this machine reaches; see `start_ray`.

    Its dashboard, and what scales clusters and brings the output of workers to the driver, are not started. Its agents,
    which export metrics, come some seconds after all else.

    Parameters
    ----------
    say
        Takes sentences for the user.
    keep_logs
        Whether, at the end, Ray's session directory stays, which holds its logs. It stays where the block raises,
        but for a `SettingError`.
    workers
        How many are started before they are asked for; as many as there are CPUs by default.
    **settings
        For ``ray.init``.

    Raises
    ------
    RayStartError
        If Ray does not start.
    """
    import ray

    _make_token(say)
    nodes: list[Any] = []
    settings = {**settings, "include_dashboard": False, "log_to_driver": False}
    start_ray(lambda: ray.init(address="local", **settings), loopback=True, say=say, nodes=nodes, workers=workers)
    keep = True
    try:
        yield
        keep = keep_logs()
    except SettingError:
        keep = False
        raise
    finally:
        _shut_down(nodes, grace=_GRACE)
        if not keep:
            _delete_sessions(nodes)


def start_ray(
    start: Callable[[], T],
    *,
    loopback: bool = False,
    say: Callable[[str], None] = print,
    pauses: Sequence[float] = _PAUSES,
    nodes: list[Any] | None = None,
    workers: int | None = None,
) -> T:
    """Return ``start()``, which starts nodes of Ray in this process, and try again if they do not start.

    A node (of Ray 2.60) gives up after 17 seconds unless its agents, which are Python processes, have written by then
    on which ports they listen. On a busy machine they have not. Here the ports are chosen before the agents start, and
    written for them, so that the node has nothing to wait for.

    What a failed start leaves, its processes and its session directory, is gone before the next. After the last one the
    directory stays, as the error names the logs in it.

    Parameters
    ----------
    start
        Calls ``ray.init(address="local")``, ``ray.cluster_utils.Cluster``, or that one's ``add_node``.
    loopback
        Whether Ray listens on the loopback address only, and runs nothing that a study on one machine has no use for.
    say
        Takes sentences for the user.
    pauses
        Seconds before each further try.
    nodes
        The nodes that were started are added to it.
    workers
        How many workers a node starts before they are asked for; None for Ray's own number, that of its CPUs.

    Raises
    ------
    RayStartError
        If no try succeeds.
    """
    import ray

    connected = ray.is_initialized()
    left = list(pauses)
    steady = True
    while True:
        tried: list[Any] = []
        try:
            with _steady_nodes(tried, loopback, workers) if steady else contextlib.nullcontext():
                result = start()
        except BaseException as error:
            _shut_down(tried, grace=0, disconnect=not connected)
            reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            if steady and isinstance(error, (ImportError, AttributeError, TypeError)):
                # A private name of Ray's is gone, or has become another thing.
                _delete_sessions(tried)
                steady = False
                say(
                    f"warning: how Ray {ray.__version__} starts is not known ({reason}). It may fail on a busy machine"
                    f"{', and other machines may reach its ports' if loopback else ''}."
                )
                continue
            if isinstance(error, Exception) and not (left and _may_pass(error)):
                logs = f"{_session(tried[-1])}/logs" if tried and _session(tried[-1]) else "its temporary directory"
                raise RayStartError(
                    f"Ray did not start on this machine ({reason}). The machine may be too busy, or have too little "
                    f"memory or shared memory. Ray's logs are in {logs}."
                ) from error
            _delete_sessions(tried)
            if not isinstance(error, Exception):
                raise
        else:
            if nodes is not None:
                nodes += tried
            return result
        say(f"Ray has not started ({reason}); trying again in {left[0]:g} s")
        time.sleep(left.pop(0))


def _may_pass(error: Exception) -> bool:
    """Whether a start may have failed for want of time; Ray has no class for that."""
    from ray.exceptions import RayError

    if isinstance(error, OSError):
        return isinstance(error, (ConnectionError, TimeoutError))
    return type(error) is Exception or isinstance(error, (RuntimeError, RayError))


@contextmanager
def _steady_nodes(made: list[Any], loopback: bool, workers: int | None) -> Iterator[None]:
    """While the block runs, put the nodes that Ray makes in this process into `made`, and fix their agents' ports.

    Raises
    ------
    ImportError, AttributeError
        If a private name of Ray's is gone.
    """
    module: Any = importlib.import_module("ray._private.node")
    services: Any = importlib.import_module("ray._private.services")
    _raylet: Any = importlib.import_module("ray._raylet")
    plain, plain_command = module.Node, services._build_python_executable_command_memory_profileable
    names = {setting: getattr(_raylet, name) for setting, name in _AGENT_PORTS.items()}
    write_port = _raylet.persist_port
    _ = plain.start_raylet, plain.get_session_dir_path, plain.is_head, plain.get_resource_and_label_spec

    class SteadyNode(plain):  # type: ignore[misc,valid-type]
        def __init__(self, ray_params: Any, *args: Any, **kwargs: Any) -> None:
            made.append(self)
            if loopback:
                if ray_params.node_ip_address is None:
                    # Given to ``ray.init``, Ray would make the machine's own address of it.
                    ray_params.node_ip_address = "127.0.0.1"
                ray_params.no_monitor, ray_params.include_log_monitor = True, False
                ray_params.setup_worker_path = setup_worker.__file__
            super().__init__(ray_params, *args, **kwargs)

        def start_api_server(self, *args: Any, **kwargs: Any) -> None:
            if loopback and kwargs.get("include_dashboard") is False:
                # Without the dashboard it would count how often Ray is used, which this Ray tells nobody; and where the
                # machine is busy, a minute is waited for it.
                self._webui_url = ""
            else:
                super().start_api_server(*args, **kwargs)

        def start_raylet(self, *args: Any, **kwargs: Any) -> None:
            for (setting, name), port in zip(names.items(), _free_ports(len(names)), strict=True):
                setattr(self._ray_params, setting, port)
                write_port(self.get_session_dir_path(), self.node_id, name, port)
            resources = self.get_resource_and_label_spec()
            if workers is not None:
                # What the node has is asked of the method; how many workers it starts with, of the number.
                fewer = copy(resources)
                fewer.to_resource_dict = resources.to_resource_dict
                fewer.num_cpus = min(workers, resources.num_cpus)
                self._resource_and_label_spec = fewer
            super().start_raylet(*args, **kwargs)
            self._resource_and_label_spec = resources

    def agents_command(*args: Any, **kwargs: Any) -> list[str]:
        # Three seconds of processor time that the first trials have more use for.
        return [sys.executable, late_start.__file__, str(_AGENTS_AFTER), *plain_command(*args, **kwargs)]

    module.Node = SteadyNode
    if loopback:
        services._build_python_executable_command_memory_profileable = agents_command
    try:
        yield
    finally:
        module.Node = plain
        services._build_python_executable_command_memory_profileable = plain_command


def _free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on and that the system gives to nobody who asks for any port."""
    low, high = 32768, 60999
    with contextlib.suppress(OSError, ValueError):
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    # Many services, Ray's workers among them, have theirs below 20000.
    candidates = [*range(20000, low), *range(high + 1, 65536)] or list(range(20000, 65536))
    found: list[int] = []
    # From the system's randomness: seeds of the caller are none of its business.
    for port in random.SystemRandom().sample(candidates, len(candidates)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            found.append(port)
        if len(found) == count:
            break
    return found


# --- what a Ray leaves ---


def _shut_down(nodes: Sequence[Any], *, grace: float, disconnect: bool = True) -> None:
    """Disconnect this process from Ray, and end all processes of `nodes`, whose starts may have failed.

    ``ray.shutdown`` does not know of a node whose start failed.
    """
    import ray

    family = _family(nodes)
    if disconnect:
        ray.shutdown()
    if not _ended(family, grace):
        for pid in _alive(family):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _ended(family, _REAPED)
    for pid in family.keys() - _alive(family):
        # So that no child of this process stays as a zombie; the others are not its to wait for.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _family(nodes: Sequence[Any]) -> dict[int, str]:
    """Return the processes of `nodes` and all that descend from them, with when each began."""
    processes = _processes()
    started = [info for node in nodes for infos in getattr(node, "all_processes", {}).values() for info in infos]
    members = {info.process.pid for info in started}
    # An agent whose raylet has died is nobody's child.
    flags = {f"{flag}={_session(node)}" for node in nodes for flag in ("--session-dir", "--session_dir")}
    members |= {pid for pid in processes if not flags.isdisjoint(process_texts(pid, "cmdline"))}
    family: dict[int, str] = {}
    while members:
        family |= {pid: processes[pid][1] for pid in members if pid in processes}
        members = {pid for pid, (parent, _) in processes.items() if parent in members and pid not in family}
    return family


def _processes() -> dict[int, tuple[int, str]]:
    """Return the parent of each process, and when it began; empty on systems without ``/proc``."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            if fields[0] != "Z":
                found[int(path.parent.name)] = int(fields[1]), fields[19]
    return found


def _alive(family: dict[int, str]) -> list[int]:
    # A number may have been given to another process since.
    return [pid for pid, (_, began) in _processes().items() if family.get(pid) == began]


def _ended(family: dict[int, str], seconds: float) -> bool:
    """Wait for the processes to end, and return whether they have."""
    end = time.monotonic() + seconds
    while _alive(family):
        if time.monotonic() >= end:
            return False
        time.sleep(0.1)
    return True


def _session(node: Any) -> str | None:
    """Return the session directory of a node; None if its start did not come to that."""
    return getattr(node, "_session_dir", None)


def _delete_sessions(nodes: Sequence[Any]) -> None:
    """Delete the session directories of heads; that of another node is its cluster's."""
    for node in nodes:
        path = _session(node)
        if path is not None and node.is_head():
            shutil.rmtree(path, ignore_errors=True)
            link = Path(path).with_name("session_latest")
            if link.is_symlink() and not link.exists():
                link.unlink(missing_ok=True)


# --- the token ---


def _make_token(say: Callable[[str], None]) -> None:
    """Make the token, which only its owner can read; one that Ray (2.60) makes is open to the whole machine."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        if path.exists() and (status := path.stat()).st_size:
            if status.st_mode & stat.S_IROTH and all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents):
                say(
                    f"warning: {path} can be read by every user of this machine (mode {status.st_mode & 0o777:o}). "
                    f"Who has that token can run code on your Ray clusters: chmod 600 {path}"
                )
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".auth_token-")  # with mode 600
        try:
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
            if path.exists():  # empty, which is as good as none
                Path(name).replace(path)
            else:
                with contextlib.suppress(FileExistsError):  # made meanwhile, by another study
                    os.link(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        raise SettingError(
            f"{path} cannot be made ({error}): Ray's token is kept there. Give one with RAY_AUTH_TOKEN instead."
        ) from error
