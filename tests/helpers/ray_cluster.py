"""A Ray cluster of two nodes on this machine, and the processes of its workers."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from filelock import FileLock


@contextmanager
def two_nodes() -> Iterator[str]:
    """Run a cluster of two nodes with one CPU each; yield its address."""
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # seconds; read at the import
    from ray.cluster_utils import Cluster

    # Two clusters on one machine would take the same ports: other processes of the tests wait.
    with FileLock(Path(tempfile.gettempdir(), f"ghosttrace-tests-ray-{os.getuid()}.lock")):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            cluster.add_node(num_cpus=1)
            yield cluster.address
        finally:
            cluster.shutdown()


def worker_processes(kind: str) -> list[psutil.Process]:
    """Return the processes that run actors of a class, among those that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::") and "".join(process.cmdline()).startswith(f"ray::{kind}"):
                found.append(process)
        except psutil.Error:  # it has ended
            continue
    return found
