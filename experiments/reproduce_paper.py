"""Repeat the paper's chain on one machine: from a base model to its Tables 3 and 4 (arXiv 2604.09852).

    python -m experiments.reproduce_paper --plan                     GPU-hours and memory; runs nothing
    python -m experiments.reproduce_paper --rehearse                 every step in small, on any machine
    python -m experiments.reproduce_paper --out runs/paper           the chain, on a machine with GPUs

The steps are: training rows, `ghosttrace init-tokens`, `ghosttrace sft` with full and then with memento attention,
`ghosttrace ablate` on AIME24, responses to AIME25, `ghosttrace probe` for passcodes planted in them, and `page.md` with
the paper's numbers beside these. Each step has its own folder; the same command goes on where an earlier one stopped.

A rehearsal trains on a few generated word problems for a few steps, and a harness writes the blocks and mementos of all
responses. It shows that every step works; its figures mean nothing.
"""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from experiments.reproduce_page import plan_table, write_page
from experiments.reproduce_plan import GPUS, ablation_plan, plan_chain
from experiments.reproduce_scale import PAPER
from experiments.reproduce_steps import Chain, Step, StepError, check_inputs, steps
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import DOWNLOADED_MODELS
from ghosttrace.report.plan import plan_findings
from ghosttrace.runs.folder import as_json, read_json, write_json
from ghosttrace.runs.paths import check_path

BASE, SMALL_BASE, DATA = "Qwen/Qwen3-8B", next(iter(DOWNLOADED_MODELS)), "microsoft/OpenMementos"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Invalid input prints one sentence and exits with code 2."""
    try:
        run(_parser().parse_args(arguments))
    except UserError as error:
        print(f"reproduce_paper: {error}", file=sys.stderr)
        sys.exit(2)
    except StepError as error:
        print(f"reproduce_paper: {error}", file=sys.stderr)
        sys.exit(error.code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--plan", action="store_true", help="print GPU-hours and memory of every step, and run nothing")
    mode.add_argument("--rehearse", action="store_true", help="take every step in small, with generated data")
    parser.add_argument("--model", help=f"base model: hub id or folder; {BASE} by default, {SMALL_BASE} in a rehearsal")
    parser.add_argument("--data", help=f"rows in the format of OpenMementos: hub id or file; {DATA} by default")
    parser.add_argument("--out", type=Path, help="folder of the chain; runs/paper, or runs/rehearsal")
    parser.add_argument("--mask-delimiters", action="store_true", help="erase the block delimiters too, as for Phi")
    parser.add_argument("--batch-size", type=int, help="sequences decoded together; by default what fits on the GPU")
    parser.add_argument("--gpu", choices=GPUS, default="h100", help="kind of GPU that the plan is for")
    parser.add_argument("--gpus", type=int, help="number of GPUs; for --plan 8 by default, else those of the machine")
    return parser


def run(options: argparse.Namespace) -> None:
    """Print the plan, or run the chain.

    Raises:
        UserError: The options contradict each other, the machine or the folder, or a step refuses its input.
        StepError: The command of a step failed.
    """
    gpus = options.gpus if options.gpus is not None else 8 if options.plan else torch.cuda.device_count()
    check(options, gpus)
    model = options.model or (SMALL_BASE if options.rehearse else BASE)
    out = options.out or Path("runs", "rehearsal" if options.rehearse else "paper")
    data = None if options.rehearse else options.data or DATA
    chain = Chain(model, out, data, options.mask_delimiters, gpus, options.batch_size)
    if not options.rehearse:
        print_plan(chain, options.gpu)
    if not options.plan:
        run_chain(chain)


def check(options: argparse.Namespace, gpus: int) -> None:
    """Check the options before anything is read or written.

    Raises:
        UserError: The options contradict each other or the machine.
    """
    if options.rehearse and options.data:
        raise UserError("--rehearse generates its data: leave out --data")
    if options.batch_size is not None and options.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {options.batch_size}")
    if not options.plan and gpus > torch.cuda.device_count():
        raise UserError(f"this machine has {torch.cuda.device_count()} GPUs, not {gpus}: give a smaller --gpus")
    if gpus < 1 and not options.rehearse:
        raise UserError("the chain needs a GPU: give --plan to see what it takes, or --rehearse to try it in small")
    if gpus < 0 or (not options.rehearse and PAPER.batch % gpus):
        raise UserError(
            f"--gpus must divide the paper's batch of {PAPER.batch} rows, and {gpus} does not: give a power of 2"
        )


def print_plan(chain: Chain, gpu: str) -> None:
    """Print what every step costs and which command it is."""
    planned = plan_chain(chain.model, PAPER, chain.mask_delimiters, GPUS[gpu], chain.gpus)
    ablation = ablation_plan(chain.model, PAPER.arms, PAPER.repetitions, PAPER, chain.mask_delimiters, GPUS[gpu])
    console = Console()
    console.print(plan_table(chain.model, planned, GPUS[gpu]))
    console.print("\nAblation:", *plan_findings(ablation), soft_wrap=True, highlight=False)
    console.print("\nThe steps are these commands, or the same calls from Python:")
    for step in steps(chain):
        console.print(f"  {step.name}: {escape(step.command)}", soft_wrap=True, highlight=False)


def run_chain(chain: Chain) -> None:
    """Run every step that is not finished, and write the page.

    Raises:
        UserError: The model does not exist, the folder belongs to another chain, or a step refuses its input.
        StepError: The command of a step failed.
    """
    check_inputs(chain)
    claim_folder(chain)
    console, todo = Console(), steps(chain)
    for number, step in enumerate(todo, 1):
        console.print(
            f"Step {number} of {len(todo) + 1}, {step.name}: {describe(step)}", soft_wrap=True, highlight=False
        )
        if step.is_finished():
            continue
        started = time.monotonic()
        step.run()
        console.print(f"  done in {time.monotonic() - started:,.0f} s", highlight=False)
    page = write_page(chain, todo)
    console.print(f"Step {len(todo) + 1} of {len(todo) + 1}, page: written to {escape(str(page))}", soft_wrap=True)


def describe(step: Step) -> str:
    """Return what a step is about to do."""
    return "finished before" if step.is_finished() else escape(step.command)


def claim_folder(chain: Chain) -> None:
    """Write `chain.json` into the folder, or compare with the one that is there.

    Raises:
        UserError: The folder belongs to a chain with other settings, or cannot be used.
    """
    check_path(chain.out)
    path, settings = chain.out / "chain.json", as_json(asdict(chain))
    del settings["batch_size"], settings["out"]  # neither changes what is measured
    if path.exists():
        before: dict[str, Any] = read_json(path)
        for name in settings:
            if before.get(name) != settings[name]:
                raise UserError(
                    f"{chain.out} was begun with {name} {before.get(name)!r}, not {settings[name]!r}: give --out a new "
                    "folder, or the old value"
                )
        return
    if chain.out.exists() and (not chain.out.is_dir() or any(chain.out.iterdir())):
        raise UserError(f"{chain.out} is not an empty folder: give --out a new one")
    chain.out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


if __name__ == "__main__":
    main()
