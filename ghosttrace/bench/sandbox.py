"""Run programs that a model wrote, one process per test, without network and without access to the user's files.

`Sandbox` starts `ghosttrace.bench.isolated` in an interpreter of its own and sends it the inputs of the tests. What
comes back is not trusted: it is bytes, and they are compared with the expected output outside the sandbox.

`check_isolation` tries once per process whether this machine can isolate. It runs a program that tries to break out.
"""

import functools
import json
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Literal, NamedTuple, Self

from ghosttrace.bench.seccomp import ARCHITECTURES, seccomp_filter
from ghosttrace.errors import UserError

PROGRAM = Path(__file__).with_name("isolated.py")
# Fixed hashes give sets the same order whenever a program is graded; BLAS would start a thread per core.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
GRACE_SECONDS = 30.0  # after its wall time a program is killed inside; the sandbox itself is killed this much later
INNER_USER, INNER_NOBODY, NOBODY = 1000, 1001, 65534
FIX = (
    "use Linux 5.14 or later on x86_64 or aarch64, and allow user namespaces (sysctl user.max_user_namespaces=10000, "
    "on Ubuntu also kernel.apparmor_restrict_unprivileged_userns=0; in Docker --security-opt seccomp=unconfined "
    "--security-opt apparmor=unconfined)"
)


@dataclass(frozen=True)
class Limits:
    """Limits of one run of a program on one test.

    Attributes:
        cpu_seconds: CPU time of all threads together. The limit that counts: it does not depend on other processes.
        wall_seconds: Time until a program that waits is killed.
        memory_bytes: Address space.
        threads: Number of threads; further processes are never allowed.
        file_bytes: Size of a file, and of all files in the working directory together.
        open_files: Number of open files.
        output_bytes: Size of the output.
    """

    cpu_seconds: int = 6  # as in LiveCodeBench's own grader, which counts wall time
    wall_seconds: float = 60.0
    memory_bytes: int = 4 * 2**30
    threads: int = 64
    file_bytes: int = 2**24
    open_files: int = 64
    output_bytes: int = 2**26


DEFAULT_LIMITS = Limits()


class Outcome(NamedTuple):
    """How a program ended on one test.

    Attributes:
        status: `ok`, or `error` (an exception, a crash, no memory), `timeout` or `output` (too much of it).
        output: What it wrote to standard output, or the value of the function as JSON.
    """

    status: Literal["ok", "error", "timeout", "output"]
    output: bytes


class SandboxError(Exception):
    """The sandbox could not be started, or ended although no program can end it; the message says why."""


class Sandbox:
    """One program in isolation; a context manager.

    Args:
        code: Source text of the program.
        function: Name of the function, or of the method of `Solution`, that a test calls. None if the program reads
            standard input and writes standard output.
        limits: Limits of every test.

    Raises:
        SandboxError: This machine cannot isolate the program.
    """

    def __init__(self, code: str, function: str | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        packages = package_folders()
        request = {
            "code": code,
            "function": function,
            "limits": asdict(limits),
            "libraries": library_folders(packages),
            "packages": packages,
            "seccomp": seccomp_filter(platform.machine()).hex(),
        }
        # -S: a .pth file would add folders that do not exist inside, and run code.
        command = [sys.executable, "-S", "-s", "-P", "-B", str(PROGRAM)]
        try:
            self._process = subprocess.Popen(
                command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=ENVIRONMENT, cwd="/", start_new_session=True
            )
        except OSError as error:
            raise SandboxError(f"starting a process: {error.strerror}") from error
        try:
            self._send(json.dumps(request).encode())
            self._expect(b"unshared")
            self._send(str(map_users(self._process.pid)).encode())
            self._expect(b"ready")
        except BaseException:
            self.close()
            raise

    def run(self, data: str) -> Outcome:
        """Run the program on the input of one test: its standard input, or one argument as JSON on each line.

        Raises:
            SandboxError: The sandbox ended, for which no program is the reason.
        """
        self._send(data.encode())
        status = self._receive().decode()
        return Outcome(status, self._receive())  # type: ignore[arg-type]

    def close(self) -> None:
        """Kill every process of the sandbox."""
        self._process.kill()  # the others die with it
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _expect(self, expected: bytes) -> None:
        if (reply := self._receive()) != expected:
            raise SandboxError(reply.decode().removeprefix("failed "))

    def _send(self, content: bytes) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(struct.pack(">Q", len(content)) + content)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise SandboxError("its process ended") from error

    def _receive(self) -> bytes:
        deadline = time.monotonic() + self.limits.wall_seconds + GRACE_SECONDS
        return self._read(struct.unpack(">Q", self._read(8, deadline))[0], deadline)

    def _read(self, size: int, deadline: float) -> bytes:
        assert self._process.stdout
        content, descriptor = bytearray(), self._process.stdout.fileno()
        while len(content) < size:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(descriptor, min(size - len(content), 2**20)) if ready else b""
            if not chunk:
                raise SandboxError("its process ended" if ready else "its process does not answer")
            content += chunk
        return bytes(content)


def map_users(process: int) -> int:
    """Map users and groups of the user namespace that a process has just entered.

    The process keeps the user who started it. Programs run as nobody if root started it, because no limit on threads
    binds the user root.

    Returns:
        The user and group of programs inside.

    Raises:
        SandboxError: The system does not allow it.
    """
    folder, ids = Path("/proc", str(process)), {"uid_map": os.geteuid(), "gid_map": os.getegid()}
    if os.geteuid() == 0:
        try:
            for name, id_ in ids.items():
                (folder / name).write_text(f"{INNER_USER} {id_} 1\n{INNER_NOBODY} {NOBODY} 1\n")
            return INNER_NOBODY
        except OSError:  # this root is itself the root of a user namespace alone, in which there is no nobody
            pass
    try:
        (folder / "setgroups").write_text("deny")
        for name, id_ in ids.items():
            (folder / name).write_text(f"{INNER_USER} {id_} 1\n")
    except OSError as error:
        raise SandboxError(f"mapping users: {error.strerror}") from error
    return INNER_USER


def package_folders() -> list[str]:
    """Return the folders from which installed packages are imported here."""
    return [path for path in sys.path if path.endswith("-packages") and os.path.isdir(path)]


def library_folders(packages: list[str]) -> list[str]:
    """Return the folders that Python and these packages load from, without those that lie in another one."""
    paths = {*packages, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    paths |= {f"{sys.base_prefix}/lib", f"{sys.base_exec_prefix}/lib", "/usr/local/lib"}
    paths |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64"}
    return sorted(path for path in paths if not any(path.startswith(f"{other}/") for other in paths))


# Prints what of the forbidden succeeded, and what of the allowed failed.
_PROBE = """
import os, socket, sys, threading
port, file = input(), input()
def connect():
    socket.create_connection(("127.0.0.1", int(port)), 1)
def start_process():
    os.fork() or os._exit(0)
def write(path):
    open(path, "a").close()
forbidden = {
    "network connections": connect,
    "new processes": start_process,
    "reading files": lambda: open(file).close(),
    "writing files": lambda: write(file),
    "writing libraries": lambda: write(os.__file__),
    "writing the root directory": lambda: write("/x"),
}
allowed = {"writing the working directory": lambda: write("x"), "threads": lambda: threading.Thread().start()}
for name, action in {**forbidden, **allowed}.items():
    try:
        action()
        done = True
    except (OSError, RuntimeError):
        done = False
    if done == (name in forbidden):
        print(name)
"""


@functools.cache
def check_isolation(what: str) -> None:
    """Check by a trial that generated programs can be isolated on this machine. A success is remembered.

    Args:
        what: What needs the isolation, for the message.

    Raises:
        UserError: They cannot; the message says why, and what to do.
    """
    if (reason := isolation_failure()) is not None:
        raise UserError(
            f"{what} runs programs that a model wrote, and this machine cannot isolate them ({reason}): {FIX}"
        )


def isolation_failure() -> str | None:
    """Return why generated programs cannot be isolated on this machine, or None if they can."""
    if sys.platform != "linux":
        return "it does not run Linux"
    if platform.machine() not in ARCHITECTURES:
        return f"its processor is {platform.machine()}"
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        file = Path(folder, "outside")
        file.write_text("outside")
        try:
            with Sandbox(_PROBE) as sandbox:
                outcome = sandbox.run(f"{server.getsockname()[1]}\n{file}\n")
        except SandboxError as error:
            return str(error)
        if outcome.status != "ok":
            return f"a program that tries it ended with {outcome.status!r}"
        wrong = outcome.output.decode().split("\n")[:-1]
    return f"not as they should be: {', '.join(wrong)}" if wrong else None
