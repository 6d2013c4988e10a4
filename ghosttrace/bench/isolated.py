"""The program that runs one generated program on its tests, in isolation. `ghosttrace.bench.sandbox` starts it.

It runs from its file in an interpreter of its own, so it imports the standard library alone. It enters new namespaces
(users, processes, network, mounts, IPC, host name), builds a root directory that holds nothing but Python's libraries,
read-only, and forks one worker per test. Only the worker runs the generated code: without capabilities, with resource
limits, and behind a seccomp filter that allows threads and no processes. The expected outputs never come here.

Messages in both directions are frames: eight bytes with the length, then the content.
"""

import contextlib
import ctypes
import json
import os
import random
import resource
import select
import signal
import struct
import sys
import time
import types
from typing import Any

NEW_MOUNTS, NEW_HOST_NAME, NEW_IPC = 0x20000, 0x4000000, 0x8000000
NEW_USERS, NEW_PROCESSES, NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
MS_BIND, MS_REC, MS_PRIVATE, MNT_DETACH = 0x1000, 0x4000, 0x40000, 2
AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = -100, 0x8000, 442  # the number is the same on all architectures
READ_ONLY = 1 | 2 | 4  # MOUNT_ATTR_RDONLY, _NOSUID, _NODEV
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
NEW_ROOT = "/proc"  # the one directory that exists everywhere and holds none of the libraries
WORK = "/sandbox"  # the working directory of generated programs; not /tmp, in which there may be libraries

# Names that LiveCodeBench's own grader gives to every program. A later module replaces names of an earlier one.
MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
PRELUDE = "\n".join([*(f"from {name} import *" for name in MODULES), *(f"import {name}" for name in MODULES)])
RECURSION_LIMIT = MAX_DIGITS = 50_000  # as in LiveCodeBench's own grader

LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """Call a function of the C library.

    Raises:
        OSError: The call failed; the message names it.
    """
    converted = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    if getattr(LIBC, name)(*converted) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str | None, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    """Mount a file system or bind a directory."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    call("mount", *texts[:3], flags, texts[3])


def make_read_only(target: str, flags: int = 0) -> None:
    """Make a mount read-only, and those below it too with AT_RECURSIVE."""
    attributes = struct.pack("4Q", READ_ONLY, 0, 0, 0)
    call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(target), flags, attributes, len(attributes))


def enter_namespaces() -> None:
    """Move this process to new namespaces; its next child is process 1 of the new process namespace."""
    with contextlib.suppress(PermissionError):  # only root may, and it alone is in groups that matter
        os.setgroups([])
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # if the machine runs out of memory, it is the generated program's fault
    call("unshare", NEW_USERS | NEW_PROCESSES | NEW_NETWORK | NEW_MOUNTS | NEW_IPC | NEW_HOST_NAME)


def build_root(libraries: list[str]) -> None:
    """Replace the root directory by one that holds the given directories, read-only, and is read-only itself."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", NEW_ROOT, "tmpfs", 0, "size=1m,mode=755")
    for path in libraries:
        target = NEW_ROOT + path
        if os.path.islink(path):  # /lib is a link to usr/lib on many systems
            os.symlink(os.readlink(path), target)
        elif os.path.isdir(path):
            os.makedirs(target, exist_ok=True)
            mount(path, target, None, MS_BIND | MS_REC)
            make_read_only(target, AT_RECURSIVE)
    for name in (WORK, "/dev"):
        os.makedirs(NEW_ROOT + name, exist_ok=True)
    os.chdir(NEW_ROOT)
    call("pivot_root", b".", b".")
    call("umount2", b".", MNT_DETACH)
    os.chdir("/")
    make_read_only("/")


def drop_privileges(limits: dict[str, Any], user: int, program: bytes) -> None:
    """Become this user without capabilities, set the resource limits, and install a seccomp filter."""
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    capability = 0
    while LIBC.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) == 0:
        capability += 1
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # a core dump would leave the sandbox
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"], limits["cpu_seconds"] + 1),
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NPROC, limits["threads"], limits["threads"]),
        (resource.RLIMIT_NOFILE, limits["open_files"], limits["open_files"]),
    ):
        resource.setrlimit(kind, (soft, hard))
    buffer = ctypes.create_string_buffer(program, len(program))
    address = ctypes.cast(buffer, ctypes.c_void_p).value
    call("prctl", PR_SET_SECCOMP, 2, struct.pack("HxxxxxxQ", len(program) // 8, address or 0), 0, 0)


def fresh_directories(limits: dict[str, Any], data: bytes) -> None:
    """Mount an empty working directory, and a /dev that holds the input of the test alone, as `stdin`."""
    for target, size in ((WORK, limits["file_bytes"]), ("/dev", len(data) + 2**16)):
        LIBC.umount2(target.encode(), MNT_DETACH)  # that of the last test, if there was one
        mount("tmpfs", target, "tmpfs", 0, f"size={size},nr_inodes=1024,mode=777")
    with open("/dev/stdin", "wb") as file:
        file.write(data)
    make_read_only("/dev")


def run_program(request: dict[str, Any], data: bytes, write_end: int, null: int) -> int:
    """Run the generated program on one test, in the worker, and return the exit code."""
    function = request["function"]
    os.chdir(WORK)
    os.dup2(null if function else os.open("/dev/stdin", os.O_RDONLY), 0)
    os.dup2(null if function else write_end, 1)
    os.dup2(null, 2)
    os.dup2(write_end, 3)
    os.closerange(4 if function else 3, 2**16)
    sys.stdin, sys.stdout = open(0, encoding="utf-8"), open(1, "w", encoding="utf-8")  # noqa: SIM115
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout)
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    drop_privileges(request["limits"], request["user"], bytes.fromhex(request["seccomp"]))
    random.seed(0)  # a program that draws numbers gets the same ones whenever it is graded
    try:
        exec(PRELUDE, main.__dict__)
        exec(compile(request["code"], "program.py", "exec"), main.__dict__)
        if function:
            owner = main.Solution() if hasattr(main, "Solution") else main
            value = getattr(owner, function)(*[json.loads(line) for line in data.decode().split("\n")])
            with open(3, "w", encoding="utf-8") as file:
                json.dump(value, file, default=plain)
    except SystemExit:
        return 0  # whatever its code: the output decides, as in LiveCodeBench's own grader
    except BaseException:
        return 1
    return 0


def plain(value: Any) -> Any:
    """Return a value that JSON does not know, such as a number of NumPy, as one that it knows."""
    return value.item() if hasattr(value, "item") else repr(value)


def collect(worker: int, read_end: int, limits: dict[str, Any]) -> tuple[str, bytes]:
    """Return how the worker ended (`ok`, `error`, `timeout` or `output`) and what it wrote."""
    deadline = time.monotonic() + limits["wall_seconds"]
    output, status, waited = bytearray(), "", [read_end, os.pidfd_open(worker)]
    while not status:
        ready, _, _ = select.select(waited, [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            status = "timeout"
        elif read_end in ready:
            chunk = os.read(read_end, 2**16)
            output += chunk
            if not chunk:
                waited.remove(read_end)
            elif len(output) > limits["output_bytes"]:
                status = "output"
        else:
            break
    kill_all()
    _, ended, used = os.wait4(worker, 0)
    signalled = os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else 0
    if signalled == signal.SIGXCPU or used.ru_utime + used.ru_stime >= limits["cpu_seconds"]:
        status = "timeout"
    os.close(waited[-1])
    os.close(read_end)
    return status or ("ok" if ended == 0 else "error"), bytes(output)


def kill_all() -> None:
    """Kill every process but this one, which must be the first of its namespace."""
    if os.getpid() != 1:
        raise RuntimeError("outside a process namespace this would kill the user's processes")
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def read_frame(descriptor: int) -> bytes | None:
    """Read a frame, or return None at the end of the stream."""
    header = read_exactly(descriptor, 8)
    return None if header is None else read_exactly(descriptor, struct.unpack(">Q", header)[0])


def read_exactly(descriptor: int, size: int) -> bytes | None:
    """Read this number of bytes, or return None if the stream ends before."""
    content = bytearray()
    while len(content) < size:
        chunk = os.read(descriptor, min(size - len(content), 2**20))
        if not chunk:
            return None
        content += chunk
    return bytes(content)


def write_frame(descriptor: int, content: bytes) -> None:
    """Write a frame."""
    with os.fdopen(os.dup(descriptor), "wb") as stream:
        stream.write(struct.pack(">Q", len(content)) + content)


def serve(request: dict[str, Any], requests: int, replies: int) -> None:
    """Answer each frame, the input of a test, with a frame for how the program ended and one with its output."""
    null = os.open(os.devnull, os.O_RDWR)
    build_root(request["libraries"])
    sys.path += request["packages"]
    sys.setrecursionlimit(RECURSION_LIMIT)
    sys.set_int_max_str_digits(MAX_DIGITS)
    exec(PRELUDE, {})  # imported once for all workers
    write_frame(replies, b"ready")
    while (data := read_frame(requests)) is not None:
        fresh_directories(request["limits"], data)
        read_end, write_end = os.pipe()
        worker = os.fork()
        if worker == 0:
            try:
                code = run_program(request, data, write_end, null)
            except OSError:
                code = 1
            sys.exit(code)  # not os._exit, so that threads end, exit functions run and output is flushed
        os.close(write_end)
        status, output = collect(worker, read_end, request["limits"])
        write_frame(replies, status.encode())
        write_frame(replies, output)


def start() -> None:
    """Read the request, enter the namespaces, and serve in the first process of the new process namespace."""
    call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    requests, replies = os.dup(0), os.dup(1)
    request = json.loads(read_frame(requests) or b"{}")
    try:
        enter_namespaces()
        write_frame(replies, b"unshared")
        request["user"] = int(read_frame(requests) or b"")
        child = os.fork()
        if child == 0:
            call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            serve(request, requests, replies)
    except (OSError, ImportError) as error:
        write_frame(replies, b"failed " + str(error).split("] ")[-1].encode())  # without the number of the error
        return
    if child:
        os.waitpid(child, 0)


if __name__ == "__main__":
    start()
