"""Generated programs in isolation: what they cannot do, how their end is reported, and the check before a run."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from helpers.commands import ghosttrace
from helpers.livecodebench import requires_isolation, row, write

from ghosttrace.bench import isolated, sandbox
from ghosttrace.bench.sandbox import Limits, Sandbox, SandboxError, check_isolation, isolation_failure
from ghosttrace.bench.seccomp import ARCHITECTURES, seccomp_filter
from ghosttrace.errors import UserError

QUICK = {"cpu_seconds": 1, "wall_seconds": 5.0, "memory_bytes": 2**28}


@pytest.fixture(autouse=True)
def _no_remembered_success() -> None:
    check_isolation.cache_clear()


def outcome(code: str, data: str = "", **limits: int | float) -> tuple[str, str]:
    with Sandbox(code, limits=Limits(**{**QUICK, **limits})) as program:  # type: ignore[arg-type]
        status, output = program.run(data)
    return status, output.decode()


def attempt(action: str, **limits: int | float) -> str:
    """Run statements and return `done`, or the name of the exception."""
    body = "\n".join(f"    {line}" for line in action.split("\n"))
    program = f"try:\n{body}\n    print('done')\nexcept Exception as error:\n    print(type(error).__name__)"
    return outcome(f"import os, socket, threading\n{program}", **limits)[1].strip()


PROGRAMS: dict[str, tuple[str, str, str | None]] = {
    "standard input": ("print(input()[::-1], sys.stdin.read())", "ok", "cba rest\n"),
    "a path for it": ("print(open('/dev/stdin').read(3), open(0).read(3))", "ok", "abc abc\n"),
    "main": ("if __name__ == '__main__':\n    print(deque([1]))", "ok", "deque([1])\n"),
    "exit code 0": ("print(1); sys.exit(0); print(2)", "ok", "1\n"),
    "exit code 3": ("print(1); exit(3)", "ok", "1\n"),
    "abrupt exit": ("print(1); import os; os._exit(0)", "ok", ""),
    "abrupt failure": ("print(1, flush=True); import os; os._exit(3)", "error", "1\n"),
    "exit functions": ("import atexit, os; atexit.register(lambda: os.write(1, b'late'))", "ok", "late"),
    "threads": ("import threading; threading.Thread(target=lambda: print('thread')).start()", "ok", "thread\n"),
    "exception": ("print(1); 1 / 0", "error", "1\n"),
    "syntax": ("print(1", "error", ""),
    "crash": ("import ctypes; ctypes.string_at(1)", "error", ""),
    "recursion": ("def f(n): return n and 1 + f(n - 1)\nprint(f(20_000))", "ok", "20000\n"),
    "endless": ("while True: pass", "timeout", ""),
    "endless after output": ("print(1, flush=True)\nwhile True: pass", "timeout", "1\n"),
    "memory": ("print(len([0] * 10**9))", "error", ""),
    "memory by steps": ("blocks = []\nwhile True: blocks.append(bytearray(10**6))", "error", ""),
    "processes": ("import os\nwhile True: os.fork()", "error", ""),
    "output": ("while True: print('x' * 10**6)", "output", None),
}


@requires_isolation
@pytest.mark.parametrize("name", PROGRAMS)
def test_how_programs_end(name: str) -> None:
    code, status, output = PROGRAMS[name]
    ended, printed = outcome(code, "abc\nrest", output_bytes=10**7)
    assert ended == status
    assert printed == output or output is None


@requires_isolation
def test_sleeping_program_is_stopped() -> None:
    begin = time.monotonic()
    assert outcome("import time; time.sleep(60)", wall_seconds=0.3) == ("timeout", "")
    assert outcome("import os, time; os.close(1); time.sleep(60)", wall_seconds=0.3)[0] == "timeout"
    assert time.monotonic() - begin < 10


@requires_isolation
def test_program_that_ignores_its_limit_is_stopped() -> None:
    begin = time.monotonic()
    code = "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert outcome(code, wall_seconds=60) == ("timeout", "")
    assert time.monotonic() - begin < 30


@requires_isolation
def test_interrupt_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> bytes:
        raise KeyboardInterrupt

    begin = time.monotonic()
    program = Sandbox("import time; time.sleep(60)")
    monkeypatch.setattr(program, "_receive", interrupt)
    with program, pytest.raises(KeyboardInterrupt):
        program.run("")
    assert program._process.returncode == -signal.SIGKILL and time.monotonic() - begin < 10


@requires_isolation
def test_nothing_outside_is_read_or_written(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    assert attempt(f"open({str(secret)!r})") == "FileNotFoundError"
    assert attempt(f"open({str(secret)!r}, 'w')") == "FileNotFoundError"
    assert attempt("open('/root/.bashrc')") == "FileNotFoundError"
    assert attempt("open(os.path.dirname(os.__file__) + '/new.py', 'w')") == "OSError"
    assert attempt("os.remove(os.__file__)") in ("OSError", "PermissionError")
    assert attempt("os.mkdir('/new')") == "OSError"
    assert attempt("open('/dev/stdin', 'a')") in ("OSError", "PermissionError")
    assert attempt("os.listdir('/proc/self')") == "FileNotFoundError"
    assert os.path.exists(os.__file__) and secret.read_text() == "secret"
    _, printed = outcome("import os; print(sorted(os.environ)); print(os.listdir('.'), os.listdir('/dev'))")
    variables, directories = printed.splitlines()
    assert set(json.loads(variables.replace("'", '"'))) - {"LC_CTYPE"} == set(sandbox.ENVIRONMENT)
    assert directories == "[] ['stdin']"


@requires_isolation
def test_the_working_directory_is_small_and_empty_for_every_test() -> None:
    code = "import os\nprint(os.listdir('.'))\nopen('left', 'w').write('x' * int(input()))"
    with Sandbox(code, limits=Limits(file_bytes=2**20)) as program:
        assert program.run("5") == ("ok", b"[]\n")
        assert program.run(str(2**21)) == ("error", b"[]\n")
        assert program.run("7") == ("ok", b"[]\n")
    many = "for i in range(9):\n    with open(str(i), 'w') as file:\n        file.write('x' * 2**19)"
    assert attempt(many, file_bytes=2**20) == "OSError"
    assert attempt("files = [open('x', 'w') for _ in range(70)]", open_files=64) == "OSError"


@requires_isolation
def test_network_is_unreachable(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(path))
        local.listen()
        server.settimeout(0)
        address = server.getsockname()
        socket.create_connection(address, 1).close()  # it listens
        server.accept()[0].close()
        assert attempt(f"socket.create_connection({address!r}, 1)") == "OSError"
        assert attempt(f"socket.socket(socket.AF_UNIX).connect({str(path)!r})") == "FileNotFoundError"
        with pytest.raises(BlockingIOError):
            server.accept()


@requires_isolation
def test_no_processes_and_few_threads() -> None:
    assert attempt("os.fork()") == "PermissionError"
    assert attempt("import subprocess; subprocess.run(['/bin/true'])") in ("PermissionError", "FileNotFoundError")
    assert attempt("os.execv('/bin/sh', ['sh'])") in ("PermissionError", "FileNotFoundError")
    assert attempt("os.kill(1, 9)") in ("PermissionError", "done")  # without effect: the program goes on
    assert attempt("os.kill(-1, 9)") in ("ProcessLookupError", "done")
    sleep = "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    bomb = f"import time\nthreading.stack_size(32768)\nfor _ in range(200):\n    {sleep}"
    assert attempt(bomb, threads=32) == "RuntimeError"


@requires_isolation
@pytest.mark.parametrize(
    "call",
    [
        *(
            "unshare(0x10000000)",
            "mount(b'x', b'/sandbox', b'tmpfs', 0, None)",
            "setuid(0)",
        ),  # stopped by the filter too
        *("umount2(b'/dev', 2)", "chroot(b'/sandbox')", "setuid(1000)"),
    ],
)
def test_privileges_are_gone(call: str) -> None:
    assert outcome(f"import ctypes; print(ctypes.CDLL(None).{call})") == ("ok", "-1\n")


@requires_isolation
def test_programs_are_the_same_whenever_they_run() -> None:
    code = "import random; print(random.random(), hash('x'), list({'a', 'b', 'c'}))"
    assert outcome(code) == outcome(code)


@requires_isolation
def test_no_process_is_left(tmp_path: Path) -> None:
    """Not even after the process that started the sandbox was killed."""
    starter = tmp_path / "starter.py"
    starter.write_text(
        "import sys\nfrom ghosttrace.bench.sandbox import Sandbox\n"
        f"program = Sandbox('while True: pass # {tmp_path}')\nprint(program._process.pid, flush=True)\nprogram.run('')"
    )
    started = subprocess.Popen([sys.executable, starter], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    outer = int(started.stdout.readline())
    inner = [pid for pid in children(outer) for _ in range(100) if time.sleep(0.01) is None][:1]
    started.send_signal(signal.SIGKILL)
    started.communicate()
    assert inner
    for _ in range(200):
        if not any(Path(f"/proc/{pid}").exists() for pid in (outer, *inner)):
            break
        time.sleep(0.02)
    else:
        pytest.fail("the sandbox outlives the process that started it")


def children(pid: int) -> list[int]:
    """Wait for children of a process."""
    for _ in range(200):
        if pids := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            return [int(child) for child in pids]
        time.sleep(0.02)
    return []


def test_killing_all_processes_is_for_a_namespace_alone() -> None:
    with pytest.raises(RuntimeError, match="user's processes"):
        isolated.kill_all()


def test_the_documented_limits_are_the_limits() -> None:
    page = (Path(__file__).parents[1] / "docs" / "ablate.md").read_text()
    table = page.partition("| limit of one test | value |")[2].partition("\n\n")[0].splitlines()[2:]
    written = [row.split(" | ")[1].removesuffix(" |") for row in table]
    limits = Limits()
    sizes = [f"{size // 2**20} MiB" for size in (limits.memory_bytes, limits.file_bytes, limits.output_bytes)]
    times = [f"{limits.cpu_seconds} s", f"{limits.wall_seconds:.0f} s"]
    assert written == [*times, sizes[0], str(limits.threads), sizes[1], str(limits.open_files), sizes[2]]


def test_filters_are_valid() -> None:
    """Every jump ends inside the program, on all architectures."""
    for machine in ARCHITECTURES:
        program = seccomp_filter(machine)
        rules = [program[i : i + 8] for i in range(0, len(program), 8)]
        assert all(i + 1 + max(rule[2], rule[3]) < len(rules) for i, rule in enumerate(rules) if rule[0] & 7 == 5)
        assert rules[-1][0] == 6


def test_a_sandbox_that_ends_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("")
    monkeypatch.setattr(sandbox, "PROGRAM", tmp_path / "empty.py")
    with pytest.raises(SandboxError, match="its process ended"):
        Sandbox("print(1)")


PARTS = {
    "network": ("| NEW_NETWORK ", "", "not as they should be: network connections"),
    "processes": ('call("prctl", PR_SET_SECCOMP,', "(lambda *_: None)(", "not as they should be: new processes"),
    "libraries": ("make_read_only(target, AT_RECURSIVE)", "pass", "not as they should be: writing libraries"),
    "mounts": ('NEW_ROOT = "/proc"', 'NEW_ROOT = "/missing"', "mount: No such file or directory"),
}


@pytest.mark.parametrize("part", PARTS)
@requires_isolation
def test_the_check_notices_every_missing_part(part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if part == "libraries" and not os.access(os.__file__, os.W_OK):
        pytest.skip("this user could not write Python's libraries anyway")
    monkeypatch.setattr(sandbox, "INNER_NOBODY", sandbox.INNER_USER)  # nobody, whom root becomes, could not either
    old, new, reason = PARTS[part]
    source = Path(isolated.__file__).read_text()
    assert source.count(old) == 1
    changed = tmp_path / "isolated.py"
    changed.write_text(source.replace(old, new))
    monkeypatch.setattr(sandbox, "PROGRAM", changed)
    assert isolation_failure() == reason


@requires_isolation
def test_the_check_notices_files_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "INNER_NOBODY", sandbox.INNER_USER)  # nobody could not read the file of the check
    folders = sandbox.library_folders
    monkeypatch.setattr(sandbox, "library_folders", lambda packages: [*folders(packages), tempfile.gettempdir()])
    assert isolation_failure() == "not as they should be: reading files"


def test_machine_without_isolation_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before a model is loaded: with one sentence, exit code 2 and no run folder."""
    refusing = tmp_path / "isolated.py"
    refusing.write_text("import os, struct\nos.write(1, struct.pack('>Q', 16) + b'failed not today')")
    monkeypatch.setattr(sandbox, "PROGRAM", refusing)
    file = write(tmp_path / "problems.jsonl", row())
    for chosen in (("livecodebench", "--bench-file", str(file)), (str(file),)):
        ended = ghosttrace("ablate", "--model", "nowhere", "--bench", *chosen, "--out", str(tmp_path / "run"))
        assert ended.returncode == 2
        assert "runs programs that a model wrote, and this machine cannot isolate them (not today): use" in ended.stderr
        assert ended.stderr.count("\n") == 1 and not (tmp_path / "run").exists()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match=r"livecodebench runs programs .*\(its processor is riscv64\)"):
        check_isolation("livecodebench")
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="it does not run Linux"):
        check_isolation("livecodebench")


def test_forbidden_user_namespaces_are_refused() -> None:
    """A real refusal, by the kernel: in a user namespace that allows no further ones."""
    program = (
        "open('/proc/sys/user/max_user_namespaces', 'w').write('0')\n"
        "from ghosttrace.bench.sandbox import isolation_failure\nprint(isolation_failure())"
    )
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", program]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"unshare does not work here: {error}")
    assert ended.stdout == "unshare: No space left on device\n"


@requires_isolation
def test_success_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    check_isolation("livecodebench")
    monkeypatch.setattr(sandbox, "isolation_failure", lambda: json.loads("x"))
    check_isolation("livecodebench")
