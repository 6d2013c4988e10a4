"""Decomposition of a run: on the command line, in summary.json, on the page and from Python."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import ghosttrace
from helpers.decompositions import NEEDED, SUFFICIENT, configuration, draw_samples
from rich.console import Console

import ghosttrace as gt
from ghosttrace.ablation.decomposable import DECOMPOSITION_ARMS, check_request
from ghosttrace.ablation.decomposition import decompose
from ghosttrace.ablation.settings import AblationSettings
from ghosttrace.bench import load_bench
from ghosttrace.errors import UserError
from ghosttrace.report.ablation.decomposition import component_estimate, decomposition_table
from ghosttrace.runs.folder import json_rows

ARMS = "restart,restart-renumbered,rerotated,swap"


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a finished run with `--decompose`, and what it printed."""
    folder = tmp_path_factory.mktemp("decomposed") / "run"
    limits = ("--limit", "3", "--margin", "5", "--out", str(folder))
    done = ghosttrace("ablate", "--bench", "ledger-h1", "--arms", ARMS, "--decompose", *limits)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_command_prints_the_decomposition_after_the_results(printed: tuple[Path, str]) -> None:
    folder, text = printed
    assert "Decomposition of the drop under restart" in text.split("keep the original")[1]
    again = ghosttrace("ablate", "--resume", str(folder))
    assert again.stdout == text
    assert (
        len(json.loads(ghosttrace("ablate", "--resume", str(folder), "--format", "json").stdout)["decomposition"]) == 6
    )


def test_summary_and_python_hold_the_same_components(printed: tuple[Path, str]) -> None:
    run = gt.open_run(printed[0])
    assert isinstance(run, gt.AblationResult)
    components = run.decompose()
    assert json_rows(components) == run.summary["decomposition"]
    names = ["total", "content", "delimiters", "position (sealed)", "position (open)", "swap"]
    assert components["component"].tolist() == names
    assert components.loc[0, "n_problems"] == components.loc[0, "n_clusters"] == 3
    assert components.set_index("component").loc["delimiters", "note"].startswith("this policy erases the delimiters")


def test_page_shows_the_decomposition_and_a_command_that_can_be_repeated(printed: tuple[Path, str]) -> None:
    page = gt.open_run(printed[0]).page()
    section = page.split('id="decomposition"')[1].split("</section>")[0]
    assert "unfamiliarity cannot be separated" in section and "answers follow the donor" in section
    assert " --decompose --" in page and '<a href="#decomposition">' in page


def test_run_without_the_option_has_no_section_and_can_be_decomposed_later(tmp_path: Path) -> None:
    run = gt.ablate("toy-mixed", "ledger-h1", ["restart"], limit=2, out=tmp_path / "run")
    assert "decomposition" not in run.summary and 'id="decomposition"' not in run.page()
    assert run.decompose().loc[0, "component"] == "total"
    no_restart = gt.ablate("toy-mixed", "ledger-h1", ["placebo"], limit=2)
    with pytest.raises(UserError, match="needs the arm restart"):
        no_restart.decompose()


def test_arms_that_apply_are_required_and_no_others() -> None:
    settings = AblationSettings(arms=("restart", "restart-renumbered", "rerotated"), decompose=True)
    benches = load_bench("ledger-h1", 1)
    check_request(benches, settings, {"restart", "restart-renumbered", "rerotated"}, other_law=False)
    with pytest.raises(UserError, match="also needs --arms restart-bare,swap: add them"):
        check_request(benches, settings, set(DECOMPOSITION_ARMS), other_law=False)


def test_table_is_whole_at_80_columns() -> None:
    accuracies = {
        bench: {"memento": 0.9, "restart": 0.1, "restart-bare": 0.1, "restart-renumbered": 0.0, "rerotated": 0.9}
        | {"swap": 0.9 if bench == NEEDED else 0.0}
        for bench in (SUFFICIENT, NEEDED)
    }
    samples = draw_samples(np.random.default_rng(0), accuracies, 40, 2)
    console = Console(width=80, file=io.StringIO())
    console.print(decomposition_table(decompose(samples, configuration())))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert "-80.0 [-" in text and "40 (20)" in text and "(against" in text


def test_estimates_are_points_with_sign_and_shares_without() -> None:
    row = {"component": "total", "estimate": -0.5, "low": -0.6, "high": 0.0004}
    assert component_estimate(row) == "-50.0 [-60.0, +0.0]"
    assert (
        component_estimate(row | {"component": "swap", "estimate": 0.8, "low": 0.7, "high": 1.0})
        == "80.0 [70.0, 100.0]"
    )
    assert component_estimate(row | {"estimate": np.nan}) == "" == component_estimate(row | {"estimate": None})
