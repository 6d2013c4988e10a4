"""A run in which nothing was erased measured nothing: it is invalid everywhere, and says what to do next."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.commands import ghosttrace

import ghosttrace as gt
from ghosttrace.ablation.arms import ARMS
from ghosttrace.ablation.erased import nothing_erased, response_counts
from ghosttrace.law.expiry import Policy

TOO_SHORT = ("ablate", "--bench", "ledger-h1", "--limit", "2", "--arms", "restart", "--max-new-tokens", "8")


def test_run_without_a_block_is_invalid_everywhere(tmp_path: Path) -> None:
    done = ghosttrace(*TOO_SHORT, "--out", str(tmp_path / "run"))
    printed = " ".join(done.stdout.split())
    assert done.returncode == 12
    assert printed.startswith("Do not rely on these numbers, because a control failed: ledger-h1: no response finished")
    assert "ghosttrace bits" in printed and "ghosttrace sft" in printed and "raise --max-new-tokens" in printed
    assert "Responses that finished no block: 2 of 2 under every arm." in printed
    assert "no answer could be extracted: 2 of 2 under every arm." in printed
    run = gt.open_run(tmp_path / "run")
    assert not run.valid and run.failures[0].startswith("ledger-h1: no response finished a block: nothing was erased (")
    assert run.results[["blocks", "without_blocks", "unextracted"]].to_numpy().tolist() == [[0, 2, 2]] * 2
    assert "ledger-h1: no response finished a block: nothing was erased" in run.report().read_text()
    assert ghosttrace("ablate", "--resume", str(tmp_path / "run")).returncode == 12


def test_failed_control_of_bits_gives_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ghosttrace.ghost_bits.run.failed_controls", lambda *_: ("placebo: sabotaged",))
    done = ghosttrace("bits", "--bench", "ledger-h1", "--limit", "2", "--out", str(tmp_path / "run"))
    assert done.returncode == 12 and "placebo: sabotaged" in done.stdout
    assert ghosttrace("bits", "--resume", str(tmp_path / "run")).returncode == 12


def messages(blocks: dict[str, list[int]], policy: Policy | None = None, **columns: Any) -> tuple[str, ...]:
    """Return the messages on samples with these numbers of blocks by arm, or by benchmark and arm (`b/memento`)."""
    rows = [(*f"bench/{name}".rsplit("/", 2)[-2:], number) for name, numbers in blocks.items() for number in numbers]
    samples = pd.DataFrame(rows, columns=["bench", "arm", "blocks"]).assign(donor_answer=None, finish="eos")
    arms = {name: ARMS[name]() for name in samples["arm"]}
    return nothing_erased(samples.assign(**columns), arms, policy or Policy(True))


def test_arms_are_judged_by_what_they_erase() -> None:
    assert messages({"memento": [0, 1], "restart": [0, 1], "full": [0, 0]}) == ()
    (alone,) = messages({"memento": [0, 0], "restart": [0, 0], "full": [0, 0], "swap": [0, 0]})
    assert alone.startswith("bench: no response finished a block: nothing was erased (measure the channel")
    (arm,) = messages({"memento": [0, 1], "restart": [0, 0], "full": [0, 0]})
    assert arm.startswith("bench: under restart, no response finished a block: nothing was erased (measure")
    (both,) = messages({"a/memento": [0], "b/memento": [0], "c/memento": [3]})
    assert both.startswith("a, b: no response")


def test_blocks_that_the_policy_keeps_are_not_erased() -> None:
    (kept,) = messages({"memento": [2, 1]}, Policy(True, keep_last_n_blocks=2))
    assert kept.startswith("bench: no response finished the 3 blocks after which one is erased: nothing was erased")
    assert messages({"memento": [2, 3]}, Policy(True, keep_last_n_blocks=2)) == ()
    assert messages({"memento": [1]}, Policy(True, keep_last_block_for_answer=True))
    assert messages({"memento": [2]}, Policy(True, keep_last_block_for_answer=True)) == ()


def test_policy_that_keeps_every_block_compares_nothing() -> None:
    keeps_all = Policy(True, keep_last_n_blocks=-1)
    assert messages({"memento": [2]}, keeps_all) == ()
    (kept,) = messages({"memento": [2], "full": [2]}, keeps_all)
    assert kept.startswith("bench: the policy keeps every block: nothing was erased (give --keep-last-n-blocks 0)")


def test_swap_that_swapped_nothing_is_named() -> None:
    (message,) = messages({"memento": [1], "swap": [1]})
    assert message.startswith("bench: under swap, ") and "nothing was swapped" in message
    assert messages({"memento": [1], "swap": [1]}, donor_answer=[None, "7"]) == ()


def test_counts_of_responses() -> None:
    part = pd.DataFrame({"blocks": [0, 3, 0], "extracted": ["1", None, "2"]})
    assert response_counts(part) == {"blocks": 1.0, "without_blocks": 2, "unextracted": 1}
