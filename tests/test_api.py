"""The Python API: uniform calls, results reopened from their folders, and user-defined methods."""

import importlib.util
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.figure
import pandas as pd
import pytest

import ghosttrace as gt
from ghosttrace.results import RESULT_CLASSES
from ghosttrace.runs.records import RecordLayout, Records
from ghosttrace.runs.samples import RecordedSamples, StoredSamples

QUICK: dict[str, Any] = {"bench": "ledger-h3", "samples": 400, "layers": [3], "hops": [0], "kv": ["v"], "mlp": False}
RUNS: dict[str, Callable[..., gt.RunResult]] = {
    "ablate": lambda m, **run: gt.ablate(m, "ledger-h1", ["restart", "swap"], limit=6, **run),
    "bits": lambda m, **run: gt.bits(m, bench="ledger-h1", limit=4, **run),
    "probe": lambda m, **run: gt.probe(m, **QUICK, **run),
    "patch": lambda m, **run: gt.patch(m, bench="ledger-h1", kind="swap", limit=3, block=-1, **run),
    "audit": lambda m, **run: gt.audit(m, attacks=["attribute"], utility_limit=4, **QUICK, **run),
}


@pytest.fixture(scope="module")
def model() -> gt.Checkpoint:
    return gt.load("toy-mixed")


@pytest.fixture(scope="module", params=RUNS)
def finished_run(
    request: pytest.FixtureRequest, model: gt.Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, gt.RunResult, list[tuple[str, int, int]]]:
    """Run each instrument in a folder; return its command, its result and the calls of the progress callback."""
    seen: list[tuple[str, int, int]] = []
    folder = tmp_path_factory.mktemp(request.param) / "run"
    result = RUNS[request.param](model, out=folder, progress=lambda *step: seen.append(step))
    return request.param, result, seen


def test_all_instruments_are_tested() -> None:
    assert RUNS.keys() | {"sft", "rl"} == RESULT_CLASSES.keys()  # see test_training_api.py for these


@pytest.mark.slow
def test_reopened_result_equals_the_original(finished_run: tuple[str, gt.RunResult, Any]) -> None:
    command, result, _ = finished_run
    assert result.folder is not None
    reopened = gt.open_run(result.folder)
    assert type(reopened) is type(result) is RESULT_CLASSES[command]
    assert reopened == result
    pd.testing.assert_frame_equal(reopened.results, result.results)
    pd.testing.assert_frame_equal(reopened.samples, result.samples)
    assert (reopened.valid, reopened.failures) == (result.valid, result.failures)


@pytest.mark.slow
def test_progress_reaches_its_total(finished_run: tuple[str, gt.RunResult, list[tuple[str, int, int]]]) -> None:
    _, _, seen = finished_run
    assert seen
    assert all(0 <= done <= total for _, done, total in seen)
    stage, done, total = seen[-1]
    assert stage and done == total


@pytest.mark.slow
def test_results_have_repr_html_and_report(finished_run: tuple[str, gt.RunResult, Any], tmp_path: Path) -> None:
    _, result, _ = finished_run
    shown = result._repr_html_()
    assert ("All controls passed" in shown) == result.valid and "<table" in shown
    assert "toy-mixed" in repr(result)
    for name in result.figures():
        assert isinstance(result.figure(name), matplotlib.figure.Figure)
    with pytest.raises(gt.UserError, match="no figure 'nothing': this run has"):
        result.figure("nothing")
    page = result.report(tmp_path / "page.html").read_text()
    assert "toy-mixed" in page and "</html>" in page


@pytest.mark.slow
def test_run_in_memory_equals_run_in_a_folder(
    finished_run: tuple[str, gt.RunResult, Any], model: gt.Checkpoint
) -> None:
    command, result, _ = finished_run
    in_memory = RUNS[command](model)
    assert in_memory.folder is None
    pd.testing.assert_frame_equal(in_memory.samples, result.samples)
    with pytest.raises(gt.UserError, match="kept in memory: give report a path"):
        in_memory.report()


def test_different_results_are_not_equal(model: gt.Checkpoint) -> None:
    first, second = (gt.bits(model, bench="ledger-h1", limit=2, seed=seed) for seed in (0, 1))
    assert first == first and first != second and first != "a result"


def test_open_run_refuses_other_folders(tmp_path: Path) -> None:
    with pytest.raises(gt.UserError, match="is not a run"):
        gt.open_run(tmp_path)
    (tmp_path / "run.json").write_text('{"command": "data build"}')
    with pytest.raises(gt.UserError, match="is a run of 'data build'"):
        gt.open_run(tmp_path)


def test_no_public_name_shadows_a_module() -> None:
    modules = {module.name for module in pkgutil.iter_modules(gt.__path__)}
    assert not modules & set(gt.__all__)
    packages = [module.name for module in pkgutil.walk_packages(gt.__path__, "ghosttrace.") if module.ispkg]
    for name in packages:
        if name == "ghosttrace.serving.vllm":
            continue
        package = importlib.import_module(name)
        inside = {module.name for module in pkgutil.iter_modules(package.__path__)}
        assert not inside & set(getattr(package, "__all__", ())), name


def test_the_package_is_typed() -> None:
    assert (Path(gt.__path__[0]) / "py.typed").exists()


def test_samples_equal_in_memory_and_in_a_folder(tmp_path: Path) -> None:
    import pyarrow as pa

    layout = RecordLayout(pa.schema({"arm": pa.string(), "n": pa.int32(), "ids": pa.list_(pa.int32())}), ("arm", "n"))
    records = Records(layout)
    for arm, n in (("b", 0), ("a", 1), ("a", 0)):
        records.add({"arm": arm, "n": n, "ids": [n] * 3})
    order = [("a", 0), ("a", 1), ("b", 0)]
    records.write(order, tmp_path / "samples.parquet")
    memory, file = RecordedSamples(records, order), StoredSamples(tmp_path / "samples.parquet")
    for columns, equal in ((None, {}), (["n"], {"arm": "a"}), (["ids"], {"arm": "a", "n": 1}), (["n"], {"arm": "c"})):
        pd.testing.assert_frame_equal(memory.frame(columns, **equal), file.frame(columns, **equal))
    with memory.stored() as path:
        pd.testing.assert_frame_equal(StoredSamples(path).frame(), file.frame())
    (tmp_path / "samples.parquet").write_text("no")
    with pytest.raises(gt.UserError, match="is damaged"):
        file.frame()
    (tmp_path / "samples.parquet").unlink()
    with pytest.raises(gt.UserError, match="is missing"):
        file.frame()


@pytest.mark.slow
def test_example_of_user_defined_methods_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """The script defines an arm, a benchmark, a defence and an attack, and runs them."""
    path = Path(__file__).parent.parent / "examples" / "own_methods.py"
    specification = importlib.util.spec_from_file_location("own_methods", path)
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    script.main()
    output = capsys.readouterr().out
    assert "zero-values" in output and "last-digit" in output
    assert "nearest-neighbour" in output and "sealed" in output


def test_user_defined_arm_appears_in_the_report(model: gt.Checkpoint, tmp_path: Path) -> None:
    class Own(gt.Arm):
        """The arm `memento` under another name."""

        name, summary, headline, priority = "own", "nothing at all", "Doing nothing at all", 99

    run = gt.ablate(model, "ledger-h1", [Own()], limit=3, out=tmp_path / "run")
    assert run.results["accuracy"].nunique() == 1 and run.summary["headline_arm"] == "own"
    assert "Doing nothing at all (own) changed accuracy by" in run.report().read_text()
    with pytest.raises(gt.UserError, match="two arms are called 'own'"):
        gt.ablate(model, "ledger-h1", [Own(), Own()], limit=3)
