"""Steps of `experiments/reproduce_paper.py`: each is a command, or the same call from Python, with its own folder.

A step that was interrupted goes on where it stopped when it is run again; a finished one is not repeated.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from transformers import PreTrainedConfig

import ghosttrace as gt
from experiments import passcode
from experiments.reproduce_data import force_blocks, sample_rows, story_rows, sums, write_jsonl
from experiments.reproduce_plan import ModelSize, decoding_rows, model_config
from experiments.reproduce_scale import PAPER, REHEARSAL, Scale
from ghosttrace.bench import Bench, load_bench
from ghosttrace.cli.progress import show_progress
from ghosttrace.model.checkpoint import Checkpoint, load_config, load_tokenizer
from ghosttrace.runs.folder import is_finished

ROOT = Path(__file__).parent.parent
SEED = 42
ACCELERATE_CONFIG = "examples/train/fsdp2-8b.yaml"
DTYPE = "bfloat16"
CONTESTS = ("aime24", "aime25")
SAVE_STEPS = 20  # the paper's stages have about 300 steps


class StepError(Exception):
    """A step's command failed. It has printed its own message.

    Args:
        step: Name of the step.
        code: Exit code of the command; below 0 if a signal ended it.
    """

    def __init__(self, step: str, code: int) -> None:
        super().__init__(
            f"the step {step} stopped with exit code {code}: see its message above, then run the same command again"
        )
        self.code = code if code > 0 else 1


@dataclass(frozen=True)
class Chain:
    """Everything that determines the steps.

    Attributes:
        model: Folder, name or hub id of the base model.
        out: Folder of the chain.
        data: Training rows as in OpenMementos: a file or a hub id. None generates them, for a rehearsal.
        mask_delimiters: See `ghosttrace.law.expiry.Policy`.
        gpus: Number of GPUs for training; 0 trains on the CPU.
        batch_size: Rows decoded together; None for what fits.
    """

    model: str
    out: Path
    data: str | None
    mask_delimiters: bool
    gpus: int
    batch_size: int | None

    @property
    def rehearsal(self) -> bool:
        """Whether the figures mean nothing."""
        return self.data is None

    @property
    def scale(self) -> Scale:
        """Sizes of all steps."""
        return REHEARSAL if self.rehearsal else PAPER

    @property
    def trained(self) -> Path:
        """Folder of the checkpoint after both stages."""
        return self.out / "sft-memento" / "model"


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        name: Name of the step and of its folder.
        command: The command that it is, or is equivalent to.
        is_finished: Whether it has been done.
        run: Does it, or goes on with it.
    """

    name: str
    command: str
    is_finished: Callable[[], bool]
    run: Callable[[], None]


def steps(chain: Chain) -> list[Step]:
    """Return all steps in order."""
    return [
        _data_step(chain),
        _delimiters_step(chain),
        _training_step(chain, "full", chain.out / "init-tokens"),
        _training_step(chain, "memento", chain.out / "sft-full" / "model"),
        _ablation_step(chain, "ablation", "aime24", chain.scale.arms, chain.scale.repetitions),
        _ablation_step(chain, "traces", "aime25", ("memento",), chain.scale.trace_repetitions),
        _probe_step(chain),
    ]


def check_inputs(chain: Chain) -> None:
    """Read what later steps need, so that none of them fails after days of training.

    Raises:
        UserError: The model, its tokenizer or a contest cannot be read.
    """
    load_config(chain.model)
    load_tokenizer(chain.model)
    if not chain.rehearsal:  # a rehearsal writes its problems
        for name in CONTESTS:
            _contest(chain, name)


def _data_step(chain: Chain) -> Step:
    folder, scale = chain.out / "data", chain.scale
    rows = folder / "rows.jsonl"

    def run() -> None:
        if chain.data is None:
            for seed, name in enumerate(CONTESTS):
                write_jsonl(folder / f"{name}.jsonl", sums(scale.problems, seed))
        write_jsonl(
            rows, story_rows(scale.rows, SEED) if chain.data is None else sample_rows(chain.data, scale.rows, SEED)
        )

    what = "word problems of the benchmark story" if chain.data is None else f"a random sample of {chain.data}"
    return Step("data", f"{what} → {rows}", rows.exists, run)


def _delimiters_step(chain: Chain) -> Step:
    folder = chain.out / "init-tokens"
    unfinished = folder.with_suffix(".part")  # config.json is saved before the weights
    flag = "--mask-delimiters" if chain.mask_delimiters else "--keep-delimiters"
    command = ("init-tokens", chain.model, str(folder), flag)

    def run() -> None:
        shutil.rmtree(unfinished, ignore_errors=True)
        _call("init-tokens", (sys.executable, "-m", "ghosttrace", "init-tokens", chain.model, str(unfinished), flag))
        unfinished.rename(folder)

    return Step("init-tokens", " ".join(("ghosttrace", *command)), folder.exists, run)


def _training_step(chain: Chain, stage: str, model: Path) -> Step:
    name, scale = f"sft-{stage}", chain.scale
    folder = chain.out / name
    options = ["--model", str(model), "--data", str(chain.out / "data" / "rows.jsonl"), "--stage", stage]
    options += [
        "--out",
        str(folder),
        "--max_length",
        str(scale.max_length),
        "--learning_rate",
        str(scale.learning_rate),
    ]
    options += ["--num_train_epochs", str(scale.epochs), "--seed", str(SEED), "--report_to", "none"]
    options += ["--gradient_accumulation_steps", str(max(1, scale.batch // max(1, chain.gpus)))]
    options += ["--save_steps", str(min(SAVE_STEPS, scale.max_steps or SAVE_STEPS))]
    options += ["--max_steps", str(scale.max_steps)] if scale.max_steps else []
    launch = ["-m"]
    if chain.gpus:
        launch += ["accelerate.commands.launch", "--config_file", str(ROOT / ACCELERATE_CONFIG)]
        launch += ["--num_processes", str(chain.gpus), "-m"]

    def run() -> None:
        given = ["--resume", str(folder)] if (folder / "run.json").exists() else options
        _call(name, (sys.executable, *launch, "ghosttrace", "sft", *given))

    shown = (
        f"accelerate launch --config_file {ACCELERATE_CONFIG} --num_processes {chain.gpus} -m " if chain.gpus else ""
    )
    return Step(name, f"{shown}ghosttrace sft {' '.join(options)}", lambda: is_finished(folder), run)


def _call(step: str, command: Sequence[str]) -> None:
    code = subprocess.run(command).returncode
    if code:
        raise StepError(step, code)


def _ablation_step(chain: Chain, name: str, contest: str, arms: tuple[str, ...], repetitions: int) -> Step:
    folder, tokens = chain.out / name, {"max_new_tokens": chain.scale.max_new_tokens}

    def run() -> None:
        begun, checkpoint = (folder / "run.json").exists(), _trained_checkpoint(chain)
        with show_progress(Console(stderr=True), "ablate", folder) as progress:
            result = gt.ablate(
                checkpoint,
                _contest(chain, contest),
                arms,
                repetitions=repetitions,
                batch_size=chain.batch_size or _rows_that_fit(checkpoint.model.config, arms, chain),
                sampling=tokens,
                out=None if begun else folder,
                resume=folder if begun else None,
                progress=progress,
            )
        result.report()

    command = f"ghosttrace ablate --model {chain.trained} --bench {contest} --arms {','.join(arms)}"
    command += (
        f" --repetitions {repetitions} --max-new-tokens {tokens['max_new_tokens']} --dtype {DTYPE} --out {folder}"
    )
    return Step(name, command, lambda: is_finished(folder), run)


def _contest(chain: Chain, name: str) -> Bench:
    """Load a contest; in a rehearsal, generated problems with its columns, and a harness that writes the blocks."""
    if not chain.rehearsal:
        return load_bench(name)[0]
    (bench,) = load_bench(name, chain.scale.problems, file=chain.out / "data" / f"{name}.jsonl")
    return replace(bench, harness=force_blocks, full_size=None)


def _trained_checkpoint(chain: Chain) -> Checkpoint:
    """Load the trained checkpoint in bfloat16; training leaves float32 weights."""
    return gt.load(chain.trained, dtype=DTYPE)


def _rows_that_fit(config: PreTrainedConfig, arms: tuple[str, ...], chain: Chain) -> int | None:
    """Return the number of rows that the plan decodes together on this GPU; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    memory, policy = torch.cuda.get_device_properties(0).total_memory, gt.Policy(chain.mask_delimiters)
    return decoding_rows(ModelSize.from_config(config), memory, arms, policy, chain.scale.max_new_tokens)


def _probe_step(chain: Chain) -> Step:
    folder, traces, samples = chain.out / "probes", chain.out / "traces", chain.scale.codes_per_trace

    def run() -> None:
        checkpoint = _trained_checkpoint(chain)
        task = passcode.passcodes(checkpoint, [str(traces)], samples, seed=0)
        with show_progress(Console(stderr=True), "probe", folder) as progress:
            passcode.measure(checkpoint, task, folder, within_traces=True, progress=progress)

    layers = ",".join(map(str, passcode.layers_of(model_config(chain.model))))
    command = f"ghosttrace probe --model {chain.trained} --traces {traces} --samples {samples} --hops 0,1"
    command += f" --layers {layers} --kv kv --joint --pool mean --within-traces --dtype {DTYPE} --out {folder}"
    return Step("probes", command, lambda: is_finished(folder), run)
