"""Connection to a Ray cluster. A connection that fails raises a `UserError` of one sentence."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass

import ghosttrace
from ghosttrace.errors import UserError

REACH_SECONDS = 10
MAX_REASON = 300  # characters
CHECK_SECONDS = 120  # a worker's first task waits for its Python to start


@dataclass(frozen=True)
class Machine:
    """A machine of a cluster.

    Attributes:
        node_id: its name in Ray.
        address: its network address.
        cpus, gpus: number of each that Ray may use there.
    """

    node_id: str
    address: str
    cpus: int
    gpus: int


@contextmanager
def connected(address: str) -> Iterator[tuple[Machine, ...]]:
    """Connect to a Ray cluster, and disconnect at the end. A connection that this process has already is used and kept.

    Args:
        address: `HOST:PORT` of the head; `auto`, the cluster that this machine belongs to; or `local`, a cluster on
            this machine alone, which ends with the connection.

    Yields:
        The machines of the cluster.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address, or its versions differ from those here.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("ray is not installed: pip install -e '.[ray]' in the GhostTrace checkout") from error
    with redirect_stdout(sys.stderr):  # Ray prints there which workers died
        if ray.is_initialized():
            yield _machines()
            return
        try:
            _connect(address)
            yield _machines()
        finally:
            ray.shutdown()


def _connect(address: str) -> None:
    import ray

    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    if address not in ("auto", "local"):
        _reach(address)
    if address != "local":
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")  # one attempt, not twenty of 40 seconds each
    options = {"include_dashboard": False} if address == "local" else {}
    try:
        with _same_sigterm_handler():
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if address == "auto" and error.__cause__ is None and isinstance(error, ConnectionError):
            raise UserError(
                "this machine belongs to no Ray cluster: start one with `ray start --head`, or give --ray local or "
                "--ray HOST:PORT"
            ) from error
        raise UserError(
            f"Ray at {address} cannot be used ({_reason(error)}): give the address of the cluster's head, start the "
            "command on a machine that has joined with `ray start`, and use the same Ray and Python on all of them"
        ) from error


@contextmanager
def _same_sigterm_handler() -> Iterator[None]:
    """Keep the handler of this process: Ray's own prints a stack and aborts."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def _reach(address: str) -> None:
    """Check that something listens at an address, because Ray tries for minutes.

    Raises:
        UserError: nothing does, or it is no address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(f"--ray {address!r} is no address of a Ray cluster: give auto, local or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray cluster can be reached at {address} ({error}): start one with `ray start --head`, or correct --ray"
        ) from error


def _machines() -> tuple[Machine, ...]:
    """Return the machines of the cluster that this process is connected to.

    Raises:
        UserError: one of them lacks GhostTrace or has another version, or none has a CPU for Ray.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def read_version() -> str | None:  # a local function, because the machine may lack this module
        try:
            import ghosttrace
        except ModuleNotFoundError:
            return None
        return ghosttrace.__version__

    machines = tuple(
        Machine(
            node["NodeID"],
            node["NodeManagerAddress"],
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    )
    if not any(machine.cpus for machine in machines):
        raise UserError("the Ray cluster has no CPU to give: start `ray start` with --num-cpus on a machine")
    task = ray.remote(num_cpus=0)(read_version)
    places = [NodeAffinitySchedulingStrategy(machine.node_id, soft=False) for machine in machines]
    versions = [task.options(scheduling_strategy=place).remote() for place in places]
    for machine, reference in zip(machines, versions, strict=True):
        try:
            found = ray.get(reference, timeout=CHECK_SECONDS)
        except ray.exceptions.RayError as error:
            raise UserError(
                f"the machine {machine.address} of the Ray cluster runs no task ({_reason(error)}): repair or stop it"
            ) from error
        if found != ghosttrace.__version__:
            has = "no GhostTrace" if found is None else f"GhostTrace {found}"
            raise UserError(
                f"the machine {machine.address} of the Ray cluster has {has}, and this one {ghosttrace.__version__}: "
                "install the same version on all of them, into the Python that runs `ray start`"
            )
    return machines


def _reason(error: Exception) -> str:
    """Return what an error of Ray says, in one line; of a traceback in it, the last line."""
    text = str(error.__cause__ or error).strip()
    return " ".join((text.splitlines()[-1] if "Traceback" in text else text).split())[:MAX_REASON]
