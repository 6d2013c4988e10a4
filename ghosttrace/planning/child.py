"""One calibration run: the command line in a process of its own, which notes at its end what only it can know.

python -m ghosttrace.planning.child USAGE.json COMMAND [OPTIONS]
"""

import json
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run the command line, and write the use of the GPU and the time spent waiting for a core."""
    usage, *arguments = sys.argv[1:]
    sys.argv = ["ghosttrace", *arguments]
    try:
        runpy.run_module("ghosttrace", run_name="__main__")
    finally:
        content = {"waiting": seconds_waiting(), "gpu_bytes": peak_gpu_bytes()}
        Path(usage).write_text(json.dumps(content), encoding="utf-8")


def seconds_waiting() -> float:
    """Return how long this process was ready to run while other processes had the cores, in seconds.

    Only Linux counts it, and here for the main thread alone; elsewhere it is 0.
    """
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def peak_gpu_bytes() -> int:
    """Return the largest number of bytes that torch reserved on one GPU; 0 if the run used none."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return max(torch.cuda.max_memory_reserved(device) for device in range(torch.cuda.device_count()))


if __name__ == "__main__":
    main()
