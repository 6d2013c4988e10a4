"""The sentences that commands print before their tables, and the options of the command itself."""

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from helpers.commands import ghosttrace

import ghosttrace as gt
from ghosttrace.law.expiry import Policy
from ghosttrace.report.ablation.findings import ablation_findings
from ghosttrace.report.ghost_bits import bits_findings
from ghosttrace.report.info import model_findings, trace_findings
from ghosttrace.report.patching import patch_findings
from ghosttrace.report.plan import plan_findings
from ghosttrace.report.probing.findings import probe_findings
from ghosttrace.report.training import training_findings

DO_NOT_RELY = "Do not rely on these numbers, because a control failed: "


def ablation(*arms: str) -> tuple[pd.DataFrame, dict[str, Any], dict[str, Any]]:
    run = gt.ablate("toy-mixed", "ledger-h1", list(arms), limit=3)
    return run.results, dict(run.summary), dict(run.configuration)


def test_ablation_findings_give_effect_swap_and_controls() -> None:
    found = ablation_findings(*ablation("restart", "swap", "placebo"))
    assert found[0].startswith("Closing the channel (restart) changed accuracy, compared with memento, by -")
    assert "on ledger-h1" in found[0] and "100.0 % on ledger-h1" in found[1]
    assert found[2].startswith("The controls passed: placebo changed accuracy by +0.0 points [")
    assert found[2].endswith(
        "], not significant. A drop under a sealed arm can also come from a cache unfamiliar to the model."
    )


def test_ablation_findings_without_a_control_or_swap_say_so() -> None:
    results, summary, configuration = ablation("restart")
    assert any(
        "No control arm was part of this run" in sentence
        for sentence in ablation_findings(results, summary, configuration)
    )
    results, summary, configuration = ablation("restart", "placebo")
    assert "can also come from a cache unfamiliar" in ablation_findings(results, summary, configuration)[-1]


def test_ablation_findings_of_the_reference_alone_ask_for_arms() -> None:
    results, summary, configuration = ablation("restart")
    alone = results[results["arm"] == "memento"]
    (found,) = ablation_findings(alone, summary | {"headline_arm": None}, configuration)
    assert found == "Only memento was run: add arms to compare it with."


def test_ablation_findings_of_a_failed_control_warn() -> None:
    results, summary, configuration = ablation("restart", "placebo")
    found = ablation_findings(results, summary | {"failures": ["ledger-h1: placebo moved"]}, configuration)
    assert found[0] == f"{DO_NOT_RELY}ledger-h1: placebo moved."
    assert not any("passed" in sentence for sentence in found)


def test_ablation_findings_name_the_restriction_and_other_significant_arms() -> None:
    results, summary, configuration = ablation("restart", "full", "placebo")
    part = {"layers": [1, 2], "heads": None, "kv": ["v"]}
    restricted = configuration | {"settings": configuration["settings"] | {"part": part}}
    results = results.assign(significant=results["arm"] == "full")
    found = ablation_findings(results, summary, restricted)
    assert found[0].startswith("Closing the channel (restart; layers 1, 2; values alone) changed")
    assert found[1] == "Other arms with a significant effect (p <= 0.05 after Holm): full."


def test_ablation_findings_say_equivalent_only_with_a_margin() -> None:
    results, summary, configuration = ablation("restart", "placebo")
    without = " ".join(ablation_findings(results, summary, configuration))
    assert "equivalent" not in without and "no effect" not in without
    configuration = configuration | {"settings": configuration["settings"] | {"margin": 5.0}}
    results = results.assign(equivalent=[None, False, True])
    assert (
        "Equivalent to memento within ±5 points: placebo. Not shown to be equivalent within ±5 points: restart. "
        "(Two one-sided tests at 5 %, of each arm by itself.)"
    ) in ablation_findings(results, summary, configuration)
    none = results.assign(equivalent=[None, False, False])
    found = " ".join(ablation_findings(none, summary, configuration))
    assert "Not shown to be equivalent within ±5 points: restart, placebo." in found and "Equivalent to" not in found


def test_ablation_findings_name_an_effect_that_rests_on_few_problems() -> None:
    results, summary, configuration = ablation("restart", "placebo")
    few = results.assign(p_holm=0.01, rests_on_few=True)
    (found,) = [words for words in ablation_findings(few, summary, configuration) if words.startswith("Few problems")]
    assert "on ledger-h1: it is not significant without the five" in found
    assert not any("Few problems" in words for words in ablation_findings(results, summary, configuration))


def test_ablation_findings_name_truncated_arms() -> None:
    results, summary, configuration = ablation("restart", "placebo")
    results = results.assign(truncated=[2 if arm == "restart" else 0 for arm in results["arm"]])
    assert ablation_findings(results, summary, configuration)[-1] == (
        "Responses that reached the token limit: 2 of 3 under restart."
    )
    found = ablation_findings(results.assign(unextracted=1, without_blocks=[0, 1, 2]), summary, configuration)
    assert found[-3:-1] == [
        "Responses that finished no block: 1 of 3 under restart, 2 of 3 under placebo.",
        "Responses from which no answer could be extracted: 1 of 3 under every arm.",
    ]


def test_bits_findings() -> None:
    run = gt.bits("toy-mixed", bench="ledger-h0,ledger-h3", limit=3)
    h0, h3, control = bits_findings(run.results, run.failures, run.configuration)
    assert "On ledger-h0" in h0 and "+0.00 of them on the answer" in h0 and "On ledger-h3" in h3 and "+9." in h3
    assert control == "The controls passed: placebo differs by +0.0000 bits per token."
    assert bits_findings(run.results, ["x"], run.configuration)[-1] == f"{DO_NOT_RELY}x."


def probe_rows(bits: float, significant: bool) -> pd.DataFrame:
    row = {"target": "digit", "carrier": "memento", "hop": 0, "layer": "2", "kv": "v", "head": "all", "probe": "linear"}
    row |= {"unknown": 3.32, "bits_low": bits - 0.1, "bits_high": bits + 0.1, "headline": True, "condition": "open"}
    row |= {"n_train": 700}
    best = row | {"bits": bits, "significant": significant}
    other = row | {"layer": "1", "bits": 3.0, "significant": True}  # better on test, not chosen on validation
    online = row | {"probe": "online", "bits": 1.0, "significant": True}
    sealed = row | {"condition": "sealed", "bits": 0.0, "significant": False}
    return pd.DataFrame([best, other, online, sealed])


def test_probe_findings_take_the_site_chosen_on_validation() -> None:
    digit, controls = probe_findings(probe_rows(2.0, True), [])
    assert "hop 0, 2.00 [1.90, 2.10] of 3.32 bits, from the values of layer 2, memento (sealed: 0.00)" in digit
    assert controls.startswith(
        "The controls passed: nothing significant was found in sealed caches. The probes learned"
    )
    assert "from 700 samples" in controls
    assert probe_findings(probe_rows(2.0, True), ["x"])[-1] == f"{DO_NOT_RELY}x."
    assert "of 3.32 bits, not significant, from" in probe_findings(probe_rows(0.05, False), [])[0]


def site_set(enough: bool) -> dict[str, Any]:
    site = {"layer": 3, "kv": "v", "carrier": "memento", "offset": 2, "token": "*"}
    alone = {"recovered": 0.99, "recovered_low": 0.9, "recovered_high": 1.0, "overshoot": 0.12, "flipped": 5}
    rest = {"recovered": 0.03, "recovered_low": 0.0, "recovered_high": 0.06, "overshoot": 0.0, "flipped": 0}
    counts = {"n_traces": 6, "everything_flipped": 6, "enough": enough}
    return {"source": "b", "block": -2, "sites": [site]} | alone | {f"rest_{k}": v for k, v in rest.items()} | counts


def test_patch_findings() -> None:
    columns = {"source": ["b", "b"], "block": [-2, -3]}
    swapped, sealed = (pd.DataFrame(columns | {"intervention": [name] * 2}) for name in ("swap", "seal"))
    found = patch_findings(swapped, [site_set(True)], [])
    assert found[0] == (
        "On b, block -2, swapping 1 site reproduces 99 [90, 100] % (and goes beyond it by 12 %) of the effect of "
        "swapping everything and turns 5 of 6 continuations into the donor's (6 under swapping everything); swapping "
        "everything else reproduces 3 [0, 6] % and turns 0 of 6 continuations into the donor's (6 traces). On the "
        "traces of the search, none of these sites can be dropped: layer 3 values at token 2 '*'."
    )
    assert found[1].endswith(": b, block -3.") and "No set of sites was searched" in found[1]
    assert found[2].startswith("The controls passed.")
    assert "all sites together did not reproduce enough" in patch_findings(swapped, [site_set(False)], [])[0]
    unknown = site_set(True) | {"flipped": None, "rest_flipped": None, "everything_flipped": None}
    assert "continuations" not in patch_findings(swapped, [unknown], [])[0]
    assert "the search needs swaps" in patch_findings(sealed, [], [])[0]
    assert patch_findings(swapped, [], [])[0].endswith("b, block -2; b, block -3.")
    assert patch_findings(swapped, [], ["x"])[-1] == f"{DO_NOT_RELY}x."


def test_a_step_without_rollouts_of_its_own_has_no_reward() -> None:
    results = [{"step": 1, "reward": 0.25, "rollout_gap": 1e-5}, {"step": 2, "reward": None, "rollout_gap": 2e-5}]
    summary = {"command": "rl", "steps": 2, "valid": True, "results": results}
    assert "last logged mean reward 0.250" in training_findings(summary)[0]
    assert "nan" in training_findings(summary | {"results": []})[0]


def test_training_findings_warn_of_weights_that_are_not_finite() -> None:
    summary = {"steps": 40, "valid": True, "results": [{"loss": 1.0, "loss_memento": 0.5, "loss_answer": None}]}
    assert training_findings(summary)[0].endswith("memento 0.500.")
    assert training_findings(summary | {"valid": False, "results": []})[-1].startswith("Do not rely on this model")


def test_plan_findings() -> None:
    spread, concentrated = SimpleNamespace(min_repetitions=31, power=0.96), SimpleNamespace(power=0.25)
    concentrated.min_repetitions = None
    plan: Any = SimpleNamespace(
        assumptions=SimpleNamespace(effect=0.05, n_problems=30, repetitions=64),
        spread=spread,
        concentrated=concentrated,
    )
    found = plan_findings(plan)
    assert "power: 31 if the arm shifts" in found[0] and "alike; no number (add problems) if" in found[0]
    assert found[1] == "Power with 64 repetitions per arm: 25 % to 96 %."


def test_model_and_trace_findings() -> None:
    model: Any = SimpleNamespace(delimiters={"<a>": 1}, policy=Policy(True), stages=("sealed",), law=None)
    assert "decode it with the arm restart" in model_findings(model)[0]
    model.policy = Policy(True, keep_last_n_blocks=-1)
    assert "--keep-last-n-blocks 0" in model_findings(model)[0]
    model.policy = None
    assert "--mask-delimiters" in model_findings(model)[0]
    model.delimiters = {"<a>": None}
    assert "ghosttrace init-tokens" in model_findings(model)[0]
    model.law = "window:4,2"
    assert "records the law window:4,2" in model_findings(model)[0]
    trace: Any = SimpleNamespace(blocks=[], tokens=3, law="memento")
    assert "nothing is erased" in trace_findings(trace)[0]
    trace.law = "window:4,2"
    assert "too short for the law window:4,2" in trace_findings(trace)[0]


@pytest.mark.parametrize(
    "arguments, start", [(["--version"], f"ghosttrace {gt.__version__}"), (["info", "toy-mixed"], "The model can")]
)
def test_command_prints_version_and_findings_first(arguments: list[str], start: str) -> None:
    assert ghosttrace(*arguments).stdout.startswith(start)
