"""A Ray cluster: the plan is a table and jobs are plain data, so all there is to do here is to hand them out.

Parents and child lie on a file system that every machine sees under the same names; nothing of them passes through Ray. Each
job asks for the memory that the plan says it takes, and no more jobs are handed out than the cluster can soon begin. When a
machine dies Ray runs its jobs again elsewhere, and may run one twice: receipts decide what is done.
"""

import logging
import os
import signal
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, NamedTuple

from msgspec import Struct

from chimerakit._version import __version__
from chimerakit.errors import ChimerakitError, ClusterError, MissingExtraError
from chimerakit.events import Report
from chimerakit.plan.memory import MAX_MEMORY, Needs, check_room
from chimerakit.runners import J, R

_CPUS = 1
"""Of each job. More jobs than cores would wait for the disk less, but Ray ends idle processes beyond the number of CPUs after a
second, and starting them again costs more than that gains."""
_PROCESS = 400 << 20
"""Bytes of a process of Ray's with our code and compiled kernels, which it keeps from job to job."""
_AHEAD = 2
"""Jobs handed out for each that can run at the moment, so that no machine waits for this one."""
_RETRIES = 20
"""How often the machine or the process that runs a job may die."""
_PATIENCE = 30.0
"""Seconds that jobs which were stopped may take to end."""


_ALONE = 300.0
"""Seconds in which another machine may come, when the last has gone."""
_NOBODY = 10.0
"""Seconds after which there is nobody at an address."""
_START = "start one: ray start --head --port 6379; or give the address that it said"


class Ray(Struct, frozen=True):
    """The runner of a cluster: of the first that this process is connected to, as Ray has one for each process.

    address: that of its head, such as 10.0.0.1:6379; None for the one in RAY_ADDRESS or on this machine, or else one that is started
    here. max_memory: bytes of each process that does jobs.

    Raises MissingExtraError.
    """

    address: str | None = None
    max_memory: int = MAX_MEMORY

    def __post_init__(self) -> None:
        _ray()

    def room(self, needs: Needs) -> int:
        """How many jobs fit at a time; 0 where there is too little memory for one. Raises ClusterError."""
        return _count(_connect(self.address), self._memory(needs)) if self._memory(needs) <= self.max_memory else 0

    def workers(self, needs: Needs) -> "RayWorkers":
        """All machines of the cluster. Raises PlanError where there is too little memory for one job, ClusterError."""
        memory, room = self._memory(needs), self.room(needs)
        machines = _machines(_connect(self.address))
        if not any(machine.get("CPU", 0) >= _CPUS for machine in machines):
            raise ClusterError(
                "no machine has a CPU to give", where=self.address or "ray", do="ray start --address ..."
            )
        most = max(int(machine.get("memory", 0)) for machine in machines if machine.get("CPU", 0) >= _CPUS)
        check_room(room, memory, min(self.max_memory, most))
        return RayWorkers(room, memory)

    def _memory(self, needs: Needs) -> int:
        return _PROCESS + needs.job


class _Done(NamedTuple, Generic[R]):
    """What a job gave, and the bytes that it reported."""

    result: R
    nbytes: int


class _Failed(NamedTuple):
    """What a job raised, on which machine, and where in the code."""

    error: Exception
    machine: str
    trace: str


class RayWorkers(Struct, frozen=True):
    """Processes all over the cluster, each doing one job at a time. memory: bytes that a job is given."""

    count: int
    memory: int

    def run(self, function: Callable[[J, Report], R], jobs: Sequence[J], advance: Callable[[int], None]) -> Iterator[R]:
        """Results as they come; what a job reports is told when it is done. Raises what a job raised, with the machine's
        name, and ClusterError where machines die too often."""
        ray = _ray()
        do = ray.remote(_do).options(num_cpus=_CPUS, memory=self.memory, max_retries=_RETRIES)
        todo, running, shared = iter(jobs), set[Any](), ray.put(function)
        seen = time.monotonic()
        try:
            while True:
                if (count := _count(ray, self.memory)) > 0:
                    seen = time.monotonic()
                elif time.monotonic() - seen > _ALONE:
                    raise ClusterError("no machine is left that could do the jobs", do="ray start --address ...")
                # One at least, even where the last machine has just gone: it waits for the next that comes.
                room = max(1, _AHEAD * count) - len(running)
                for job in islice(todo, max(0, room)):
                    running.add(do.remote(__version__, shared, job))
                if not running:
                    return
                for found in ray.wait(list(running), timeout=1)[0]:
                    running.discard(found)
                    answer: _Done[R] | _Failed = ray.get(found)
                    if isinstance(answer, _Failed):
                        raise _error_of(ray, answer)
                    advance(answer.nbytes)
                    yield answer.result
        except ray.exceptions.RayError as e:
            do = "see what `ray status` and Ray's logs say; the same chimerakit has to be installed on every machine"
            raise ClusterError("the cluster failed", found=f"{type(e).__name__}: {e}", do=do) from e
        finally:
            for each in running:
                ray.cancel(each, force=True)
            ray.wait(list(running), num_returns=len(running), timeout=_PATIENCE) if running else None


def _do(version: str, function: Callable[[J, Report], R], job: J) -> _Done[R] | _Failed:
    """On some machine: one job."""
    ray, done = _ray(), 0

    def report(nbytes: int) -> None:
        nonlocal done
        done += nbytes

    try:
        if version != __version__:
            raise ClusterError("another version of chimerakit is installed", expected=version, found=__version__)  # noqa: TRY301
        return _Done(function(job, report), done)
    except Exception as e:  # noqa: BLE001 - it is raised again by who asked
        return _Failed(e, ray.get_runtime_context().get_node_id(), traceback.format_exc())


def _error_of(ray: Any, failed: _Failed) -> Exception:
    """What a job raised, with the name of its machine; of what nobody expected, also where it was raised."""
    machine: dict[str, Any] = next((m for m in ray.nodes() if m["NodeID"] == failed.machine), {})
    name = f"{machine.get('NodeManagerHostname', 'unknown')} ({machine.get('NodeName', failed.machine)})"
    if isinstance(failed.error, ChimerakitError):
        return failed.error.on(name)
    failed.error.add_note(f"on {name}:\n{failed.trace}")
    return failed.error


def _count(ray: Any, memory: int) -> int:
    """Jobs that all machines together can do at a time."""
    return sum(int(min(m.get("CPU", 0) / _CPUS, m.get("memory", 0) // memory)) for m in _machines(ray))


def _machines(ray: Any) -> list[dict[str, float]]:
    """What each machine of the cluster has to give."""
    return [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]


def _ray() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
    except ImportError as e:
        raise MissingExtraError("ray", "ray") from e
    return ray


def _connect(address: str | None) -> Any:
    """Ray, connected; a second call changes nothing."""
    ray = _ray()
    if ray.is_initialized():
        return ray
    _check_address(address or os.environ.get("RAY_ADDRESS", ""))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as e:
        raise ClusterError("no cluster answers", where=address or "ray", found=e, do=_START) from e
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray sets its own
    return ray


def _check_address(address: str) -> None:
    """Refuse an address where nobody is: Ray itself would try for many minutes."""
    if "://" in address:
        raise ClusterError(
            "jobs are given out by a machine of the cluster, as it sees the same files",
            where=address,
            expected="HOST:PORT",
            do="run this command there",
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # auto, local, or something that Ray will refuse
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_NOBODY).close()
    except (OSError, OverflowError) as e:
        raise ClusterError("no cluster answers", where=address, found=e, do=_START) from e
