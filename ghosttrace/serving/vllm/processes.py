"""What remains of a server that was killed: nothing. Needs only the standard library."""

import multiprocessing
import os
import signal
import subprocess
import tempfile
import threading


def end_with_parent() -> None:
    """End this process as soon as the process that started it has ended, even by SIGKILL.

    Does nothing in a process that multiprocessing has not started, such as the user's own.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()


def make_metrics_folder() -> str:
    """Make a folder for the metrics of all processes of a server, and return its path.

    The folder is removed when this process has ended, however it ends and whatever it has executed in the meantime: a
    shell waits for the end of a pipe whose other end only this process has.
    """
    folder = tempfile.mkdtemp(prefix="ghosttrace-metrics-")
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)  # it remains open in the program that this process executes
    subprocess.Popen(["sh", "-c", 'read -r _; rm -rf -- "$0"', folder], stdin=reader, start_new_session=True)
    os.close(reader)
    return folder
