"""`ablate`: the same checkpoint, problems and draws with the ghost channel open, closed or altered."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch

from ghosttrace.ablation.arms import ARMS, Part, Restart, RestartRenumbered, Swap
from ghosttrace.ablation.collect import Cell, Donors, Write, make_arm, write_here
from ghosttrace.ablation.outcome import REFERENCE, Ablation, at_k, failed_controls, summarise
from ghosttrace.bench import Bench, load_bench
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint, Geometry, load
from ghosttrace.model.sampling import Sampling
from ghosttrace.runs.records import Records
from ghosttrace.serving.paging import ARMS as PAGED

MAIN_ARMS = ("memento", "full", "placebo", "restart", "restart-bare", "restart-renumbered", "rerotated", "swap")
SEALING = tuple(name for name, arm in ARMS.items() if issubclass(arm, Restart))


@dataclass(frozen=True)
class Settings:
    """What an ablation runs.

    Attributes:
        arms: names in `ghosttrace.ablation.arms.ARMS`; `memento`, the reference, always runs. None: those
            of `MAIN_ARMS` that mean something for the checkpoint and the benchmark.
        repetitions: samples of each problem; None: the benchmark's protocol.
        limit: problems of each benchmark.
        seed: of problems and draws.
        batch_size: rows decoded together; None: 128, or on a GPU what its memory surely holds.
        sampling: fields of `Sampling` that override the protocol's.
        part: what the sealing arms seal.
        noise: relative size of the arm `noise`.
        backend: what writes the samples: `hf`, the checkpoint's own model; or `vllm`, for the arms that it can run.
        engine: further arguments of vLLM's `LLM`.
    """

    arms: tuple[str, ...] | None = None
    repetitions: int | None = None
    limit: int | None = None
    seed: int = 0
    batch_size: int | None = None
    sampling: dict[str, float | int | None] = field(default_factory=dict)
    part: Part = field(default_factory=Part)
    noise: float = 0.5
    backend: str = "hf"
    engine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.arms or ():
            if name not in ARMS:
                raise UserError(f"no arm {name!r}: choose from {', '.join(ARMS)}")
        if not self.part.whole and not set(self.arms or MAIN_ARMS) & set(SEALING):
            raise UserError(f"--layers, --heads and --kv choose what a sealing arm seals: add {' or '.join(SEALING)}")
        if min(self.batch_size or 1, self.repetitions or 1) < 1 or 0 in (self.batch_size, self.repetitions):
            raise UserError("--batch-size and --repetitions are at least 1")
        if self.backend not in ("hf", "vllm") or (self.engine and self.backend != "vllm"):
            raise UserError("--backend is hf or vllm, and --engine-args are vLLM's")
        if self.seed < 0 or not 0 <= self.noise < inf:
            raise UserError("--seed and --noise are not negative")


def ablate(
    model: str | Checkpoint = "toy-mixed",
    bench: str | Sequence[Bench] = "ledger",
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> Ablation:
    """Run an ablation; every argument of `Settings` may be given by name.

    Args:
        model: a name for `ghosttrace.model.checkpoint.load`, or what it returned.
        bench: a name for `ghosttrace.bench.load_bench`, or benchmarks.
        progress: called with (what runs, samples done, samples in all).

    Raises:
        UserError: anything that cannot be run as asked; it is raised before anything runs.
    """
    chosen = Settings(**settings)
    checkpoint = load(model) if isinstance(model, str) else model
    benches = load_bench(bench, chosen.limit, chosen.seed) if isinstance(bench, str) else bench
    cells, records = plan_cells(checkpoint, benches, chosen), Records()
    with writer(cells, chosen) as write:
        collect(cells, records, chosen.batch_size or rows_at_once(cells), progress, write)
    return outcome(cells, records, chosen.part)


def plan_cells(checkpoint: Checkpoint, benches: Sequence[Bench], settings: Settings) -> list[Cell]:
    """Every arm on every benchmark, each benchmark's reference first.

    Raises:
        UserError: an arm that was asked for by name cannot be run.
    """
    geometry = Geometry.of(checkpoint.model.config)
    settings.part.check(geometry.layers, geometry.kv_heads)
    return [cell for bench in benches for cell in _cells(checkpoint, bench, settings)]


def _cells(checkpoint: Checkpoint, bench: Bench, settings: Settings) -> list[Cell]:
    cells = []
    sampling, repetitions = sampling_for(bench, settings), settings.repetitions or bench.protocol.repetitions
    main = MAIN_ARMS if settings.backend == "hf" else [name for name in MAIN_ARMS if name in PAGED]
    for name in dict.fromkeys((REFERENCE, *(settings.arms or main))):
        donors = Donors(bench, checkpoint.tokenizer, settings.seed)
        arm = make_arm(name, settings.part, settings.noise, donors)
        try:
            arm.law(checkpoint.policy)
            arm.check(checkpoint.model)
            if isinstance(arm, Swap) and bench.counterfactual is None:
                raise UserError("swap needs a benchmark that can write counterfactual blocks, such as ledger")
        except UserError:
            if settings.arms is not None or name == REFERENCE:
                raise
            continue
        cells.append(Cell(checkpoint, bench, arm, donors, sampling, repetitions, settings.seed))
    return cells


def sampling_for(bench: Bench, settings: Settings) -> Sampling:
    """The benchmark's protocol with the user's settings on top."""
    protocol = bench.protocol
    fields = {name: getattr(protocol, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "min_p")}
    return Sampling(**fields | {name: value for name, value in settings.sampling.items() if value is not None})


def rows_at_once(cells: Sequence[Cell], most: int = 128) -> int:
    """How many rows to decode together: `most`, or on a GPU as many as its memory holds at their longest.

    Args:
        cells: whose model and longest responses count.
        most: never more than this.
    """
    model = cells[0].checkpoint.model
    if model.device.type != "cuda":
        return most
    a_token = Geometry.of(model.config).bytes_per_token(model.dtype)
    longest = max(cell.sampling.max_new_tokens * _caches(cell) for cell in cells)
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(1, min(most, int(0.8 * free / (longest * a_token))))


def _caches(cell: Cell) -> int:
    """How many caches a cell's arm holds: those that seal keep a sealed one beside the live one."""
    return 2 if isinstance(cell.arm, Restart | RestartRenumbered) else 1


def collect(
    cells: Sequence[Cell],
    records: Records,
    batch_size: int,
    progress: Callable[[str, int, int], None] | None = None,
    write: Write = write_here,
) -> None:
    """Take every sample of the cells that is not on record yet."""
    total, before = sum(len(cell.keys) for cell in cells), 0
    for cell in cells:

        def show(done: int, cell: Cell = cell, before: int = before) -> None:
            if progress:
                progress(f"{cell.bench.name} · {cell.arm.name}", before + done, total)

        cell.run(records, batch_size, show, write)
        before += len(cell.keys)


@contextmanager
def writer(cells: Sequence[Cell], settings: Settings) -> Iterator[Write]:
    """What writes the samples of these cells.

    Raises:
        UserError: it is not there, or cannot run one of the arms.
    """
    if settings.backend == "hf":
        yield write_here
        return
    from ghosttrace.serving.vllm.backend import vllm_writer

    with vllm_writer(cells[0].checkpoint, cells, settings.engine) as write:
        yield write


def outcome(cells: Sequence[Cell], records: Records, part: Part, columns: Iterable[str] | None = None) -> Ablation:
    """Effects, intervals and controls of what has been collected.

    Args:
        cells: all of them complete in `records`.
        records: the samples.
        part: what the sealing arms sealed.
        columns: which columns of the samples to keep; all of them unless told otherwise.
    """
    checkpoint = cells[0].checkpoint
    benches = list({cell.bench.name: cell.bench for cell in cells}.values())
    samples = records.frame([key for cell in cells for key in cell.keys], columns)
    bytes_per_token = Geometry.of(checkpoint.model.config).bytes_per_token(checkpoint.model.dtype)
    results = summarise(samples, bytes_per_token)
    return Ablation(samples, results, at_k(samples), failed_controls(results, benches, part, checkpoint.policy))
