"""Plans of runs: calibration by short runs of the same command, and extrapolation from them."""

import json
import math
from pathlib import Path

import pytest
from helpers.commands import ghosttrace

import ghosttrace as gt
from ghosttrace.planning import calibrate as calibration
from ghosttrace.planning.calibrate import calibrate, calibration_sizes
from ghosttrace.planning.command import Command
from ghosttrace.planning.estimate import estimate_cost, linear
from ghosttrace.planning.measure import REST, Measurement, RefusedError, StepTime, _steps, measure
from ghosttrace.planning.workload import Source, Workload, workload
from ghosttrace.runs.progress import no_progress


def run(amount: int, reading: float, fits: float = 0.0, rest: float = 1.0, waiting: float = 0.0) -> Measurement:
    """Return a measured run: a step that reads `amount` traces, one of 10 fits, and the rest."""
    steps = {"read": StepTime(reading, amount), "fit": StepTime(fits, 10), REST: StepTime(rest, 0)}
    seconds = reading + fits + rest + waiting
    return Measurement(amount, amount, seconds, waiting, seconds, 1e9 + 1e6 * amount, 0.0, 3e6 * amount, 1e6, steps)


def test_a_fixed_part_and_a_part_per_unit_are_found_again() -> None:
    runs = [run(amount, reading=8 + 0.05 * amount) for amount in (20, 50, 130)]
    cost = estimate_cost(runs, 1000)
    assert cost.seconds.value == pytest.approx(8 + 50 + 1)
    assert cost.seconds.low == pytest.approx(cost.seconds.value) == pytest.approx(cost.seconds.high)
    assert cost.memory == pytest.approx(2e9) and cost.peak_disk == pytest.approx(3e9) and cost.disk == 1e6


def test_each_worker_has_the_fixed_part_and_its_share_rounded_up() -> None:
    runs = [run(amount, reading=8 + 0.05 * amount, fits=6.0) for amount in (20, 50, 130)]
    fits = 6.0 * math.sqrt(1000 / 130)  # between as long as before and in proportion
    four, three = (estimate_cost(runs, 1000, workers) for workers in (4, 3))
    assert four.seconds.value == pytest.approx(8 + 0.05 * 250 + fits / 4 + 1)
    assert three.seconds.value == pytest.approx(8 + 0.05 * 334 + fits / 3 + 1)
    assert four.disk == 4e6 and four.memory == pytest.approx(1.25e9)


def test_fits_lie_between_a_constant_time_and_a_proportional_one() -> None:
    cost = estimate_cost([run(amount, reading=8.0, fits=6.0) for amount in (100, 200, 500)], 1000)
    assert (cost.seconds.low, cost.seconds.high) == (pytest.approx(8 + 6 + 1), pytest.approx(8 + 12 + 1))
    assert cost.seconds.value == pytest.approx(8 + 6 * math.sqrt(2) + 1)


def test_scatter_gives_a_range_and_no_part_decreases() -> None:
    found = linear([10, 20, 50], [3.0, 5.5, 10.0], 500)
    assert found.low < found.value < found.high
    assert found.high == pytest.approx(10 + 450 * 7 / 40) and found.low == pytest.approx(10 + 450 * 4.5 / 30)
    assert linear([10, 20], [5.0, 4.0], 500).value == pytest.approx(4.5)


def test_waiting_for_a_core_is_not_part_of_the_time() -> None:
    calm, busy = (
        estimate_cost([run(amount, 8 + 0.1 * amount, waiting=wait) for amount in (20, 50, 130)], 1000)
        for wait in (0.0, 12.0)
    )
    assert busy.seconds == calm.seconds and calm.busy_seconds.value == pytest.approx(calm.seconds.value)
    assert busy.busy_seconds.value > 1.5 * calm.busy_seconds.value


def test_steps_of_one_name_are_added_up() -> None:
    steps = _steps([("a", 5, 2.0), ("b", 1, 3.0), ("a", 5, 7.0)], 7.5)
    assert steps == {"a": StepTime(6.0, 10), "b": StepTime(1.0, 1), REST: StepTime(0.5, 0)}


@pytest.mark.parametrize(
    ("line", "option", "size", "amount"),
    [
        ("ablate --bench ledger-h1 --limit 1000", "--limit", 1000, 8),
        ("ablate --bench ledger-h1 --limit 10 --repetitions 3 --batch-size=4", "--limit", 10, 8),
        ("ablate --bench ledger --limit 300", "--limit", 300, 12),
        ("bits", "--limit", 100, 400),
        ("patch --bench ledger-h1 --limit 5", "--limit", 5, 5),
        ("probe --samples 10 --samples 700", "--samples", 700, 700),
        ("ghosttrace audit", "--samples", 8000, 8000),
    ],
)
def test_sizes_of_commands(line: str, option: str, size: int, amount: int) -> None:
    found = workload(Command.parse(line))
    assert (found.option, found.size, found.amount(found.size)) == (option, size, amount)


def test_traces_of_files_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "traces.jsonl"
    file.write_text("".join(json.dumps({"problem": "p", "response": "r"}) + "\n" for _ in range(7)))
    sizes = [workload(Command.parse(f"bits --traces {file} --limit {limit}")).size for limit in (100, 5)]
    planted = workload(Command.parse(f"probe --traces {file} --samples 90"))
    natural = workload(Command.parse(f"probe --traces {file} --secret last-number"))
    assert sizes == [7, 5]
    assert (planted.option, planted.size, planted.amount(90)) == ("--samples", 90, 630)
    assert (natural.option, natural.amount(natural.size)) == ("--limit", 7)


def test_calibration_takes_full_batches_and_a_fifth_of_the_work() -> None:
    large = workload(Command.parse("ablate --bench ledger-h1 --limit 20000"))
    sizes = calibration_sizes(large)
    assert all(size % 128 == 0 for size in sizes) and len(set(sizes)) == 3
    assert 0.15 < sum(map(large.amount, sizes)) / large.amount(20_000) < 0.25
    assert calibration_sizes(workload(Command.parse("ablate --bench ledger-h1 --limit 300"))) == [300]


def fake(monkeypatch: pytest.MonkeyPatch, seconds_per_unit: float, refused_below: int = 0) -> list[int]:
    """Replace runs by a formula; return the list to which the sizes that run are appended."""
    sizes: list[int] = []

    def run_at(command: Command, size: Workload, folder: Path, value: int) -> Measurement:
        if value < refused_below:
            raise RefusedError(f"{value} is too few")
        sizes.append(value)
        return run(value, 10 + seconds_per_unit * value)

    monkeypatch.setattr(calibration, "run_at", run_at)
    return sizes


TRACES = Workload("--limit", 1000, "traces", (Source(1000),))


@pytest.mark.parametrize(
    ("seconds_per_unit", "refused_below", "expected"),
    [(1.0, 0, [20, 50, 130]), (0.001, 0, [20, 50]), (1.0, 30, [50, 130]), (1.0, 100, [130, 260])],
)
def test_calibration_goes_on_only_where_it_pays(
    seconds_per_unit: float, refused_below: int, expected: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cheap run is not calibrated longer than it takes, and sizes that a command refuses are left out."""
    sizes = fake(monkeypatch, seconds_per_unit, refused_below)
    calibrate(Command("bits", ()), TRACES, tmp_path, no_progress)
    assert sizes == expected


def test_what_is_refused_at_every_size_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(monkeypatch, 1.0, refused_below=500)
    with pytest.raises(gt.UserError, match="with --limit 130 was refused: 130 is too few"):
        calibrate(Command("bits", ()), TRACES, tmp_path, no_progress)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workers", "0", "--", "bits"), "--workers must be at least 1, not 0"),
        (("--", "bits", "--out", "x"), "--out cannot be planned"),
        (("--", "probe", "--resume=x"), "--resume cannot be planned"),
        (("--", "measure", "--limit", "3"), "'measure' is no instrument to plan"),
        (("--", "bits", "--limit", "0"), "--limit must be at least 1, not 0"),
        (("--", "bits", "--limit", "many"), "--limit must be a number, not 'many'"),
        (("--", "bits", "--bench", "nonsense"), "no bench 'nonsense'"),
        (("--bench", "aime24", "--", "bits"), "--bench plans an ablation of a model"),
        (("toy-mixed", "--workers", "2"), "--workers and --keep need a run to plan"),
        (("--effect", "90", "--", "ablate", "--bench", "ledger-h1"), "above 0 and below"),
    ],
)
def test_invalid_plans_are_refused_before_anything_runs(arguments: tuple[str, ...], message: str) -> None:
    asked = ghosttrace("plan", *arguments)
    assert asked.returncode == 2 and message in asked.stderr and asked.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--limitt", "3"), "No such option: --limitt"), (("--arms", "erase"), "bits cannot run the arm 'erase'")],
)
def test_the_instrument_says_what_it_refuses(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(gt.UserError, match=message):
        measure(["bits", "--bench", "ledger-h1", "--limit", "3", *arguments], tmp_path / "one", 3, 3)


@pytest.mark.slow
def test_a_small_run_is_measured_and_kept(tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    asked = ghosttrace(
        "plan", "--keep", str(keep), "--format", "json", "--", "bits", "--bench", "ledger-h1", "--limit", "5"
    )
    found = json.loads(asked.stdout)
    (row,), (measured,) = found["results"], found["runs"]
    assert "was measured" in found["findings"][0]
    assert row["busy_seconds"] == measured["seconds"] > row["seconds"] > 0
    assert math.isclose(row["seconds"], sum(measured["steps"].values())) and "end" in measured["steps"]
    assert row["memory"] > 1e8 and row["peak_disk"] >= row["disk"] > 1e4
    kept = gt.open_run(keep / "size-5" / "run")
    assert kept.samples["trace"].nunique() == 5
    again = ghosttrace("plan", "--keep", str(keep), "--", "bits", "--bench", "ledger-h1", "--limit", "5")
    assert again.returncode == 2 and "holds other files" in again.stderr
