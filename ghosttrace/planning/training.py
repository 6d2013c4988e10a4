"""The size of a planned training, read from the folder of a first calibration run.

What the trainer's flags and files ask for is known once a run has parsed them: its optimiser steps, and the checkpoints
that it keeps.
"""

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from ghosttrace.bench import as_benches
from ghosttrace.planning.command import Command
from ghosttrace.planning.measure import folder_size
from ghosttrace.planning.workload import Source, Workload
from ghosttrace.runs.folder import read_json

STEPS = "--max_steps"


@dataclass(frozen=True)
class TrainingSize:
    """Size of a planned training.

    Attributes:
        workload: Its optimiser steps.
        saves: Checkpoints that it writes.
        kept: Checkpoints that it keeps; one more exists while the next is written.
    """

    workload: Workload
    saves: int
    kept: int

    def more_disk(self, run: Path) -> tuple[float, float]:
        """Return the bytes of the checkpoints beyond those of a calibration run, at most and in the end."""
        written = [folder_size(path) for path in (run / "checkpoints").glob("checkpoint-*")]
        largest = max(written, default=0)
        return (
            float(largest * max(0, min(self.saves, self.kept + 1) - len(written))),
            float(largest * max(0, self.kept - len(written))),
        )


def training_size(command: Command, run: Path) -> TrainingSize:
    """Return the size of a training from the folder of a run of it with the size option added at the end."""
    from trl.trainer.grpo_config import GRPOConfig

    from ghosttrace.training import rl
    from ghosttrace.training.recipe import parse_flags, parse_trainer_flags

    record = read_json(run / "run.json", "options")
    flags = record["options"]["trainer"][:-2]  # without the size of the calibration run
    if command.instrument == "sft":
        args, _ = parse_trainer_flags(flags)
        steps, cycle = _sft_steps(args, run), 1
    else:
        args, _ = parse_flags(flags, GRPOConfig, rl.PAPER_DEFAULTS, rl.UNSUPPORTED_FLAGS)
        steps, cycle = _rl_steps(args, record["options"])
    size = Workload(STEPS, steps, "optimiser steps", (Source(steps),), rows=cycle, step=cycle)
    saves = _saves(args, steps)
    return TrainingSize(size, saves, saves if not args.save_total_limit else min(saves, args.save_total_limit))


def _sft_steps(args: Any, run: Path) -> int:
    """Return the optimiser steps of one process, as transformers counts them."""
    from ghosttrace.training.prepare import open_examples

    if args.max_steps > 0:
        return int(args.max_steps)
    rows = len(open_examples(run / "examples.parquet", run / "cache", args.max_length if args.packing else None))
    batches = ceil(rows / args.train_batch_size)
    return ceil(args.num_train_epochs * max(1, ceil(batches / args.gradient_accumulation_steps)))


def _rl_steps(args: Any, options: dict[str, Any]) -> tuple[int, int]:
    """Return the optimiser steps of one process, as TRL counts them, and the steps from one generation to the next."""
    accumulated = args.gradient_accumulation_steps
    cycle = max(1, args.steps_per_generation * args.num_iterations // accumulated)
    if args.max_steps > 0:
        return int(args.max_steps), cycle
    problems = sum(len(bench.problems) for bench in as_benches(options["bench"], options["limit"], args.seed))
    prompts = args.per_device_train_batch_size * args.steps_per_generation // args.num_generations
    batches = problems // prompts * args.num_iterations * args.steps_per_generation
    return ceil(args.num_train_epochs * max(1, ceil(batches / accumulated))), cycle


def _saves(args: Any, steps: int) -> int:
    """Return how many checkpoints a training writes, the last step's included."""
    strategy = getattr(args.save_strategy, "value", args.save_strategy)
    if strategy == "no":
        return 0
    if strategy == "epoch":
        return ceil(args.num_train_epochs)
    every = args.save_steps if args.save_steps >= 1 else args.save_steps * steps
    return ceil(steps / max(1, every))
