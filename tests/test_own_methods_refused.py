"""Invalid user-defined arms, benchmarks, probes, attacks and defences are refused with one sentence."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import ghosttrace as gt
from ghosttrace.ablation.arms import Restart
from ghosttrace.ablation.settings import AblationSettings
from ghosttrace.auditing.evidence import AttackEstimate, Evidence
from ghosttrace.auditing.findings import check_findings
from ghosttrace.auditing.settings import AuditSettings, resolve_attacks, resolve_defence
from ghosttrace.auditing.threats import INSIDER, Threat
from ghosttrace.bench import as_benches
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.runs.folder import as_json, stable_repr


def own_arm(name: str, colour: str = "#aa3377") -> gt.Arm:
    kind = type("Own", (gt.Arm,), {"name": name, "summary": "an arm", "colour": colour})
    return dataclass(frozen=True)(kind)()


@dataclass(frozen=True)
class Nameless(gt.Arm):
    pass


@pytest.mark.parametrize("arms", [[own_arm("memento")], ["restart", own_arm("restart")], [own_arm("a"), own_arm("a")]])
def test_different_arms_with_one_name_are_refused(arms) -> None:
    with pytest.raises(gt.UserError, match="two arms are called"):
        AblationSettings(arms=tuple(arms))
    with pytest.raises(gt.UserError, match="two arms are called"):
        gt.bits("toy-mixed", bench="ledger-h1", arms=arms, limit=1)


@pytest.mark.parametrize(
    "arm, message",
    [
        (Nameless(), "has no name"),
        (Restart, "give an object of the class"),
        (None, "give a name"),
        (own_arm("red", "red"), "#aa3377"),
    ],
)
def test_invalid_arms_are_refused(arm, message) -> None:
    with pytest.raises(gt.UserError, match=message):
        AblationSettings(arms=(arm,))


def test_empty_list_of_arms_runs_the_reference_alone() -> None:
    assert [arm.name for arm in AblationSettings(arms=()).chosen_arms()] == ["memento"]


def test_the_same_arm_twice_runs_once() -> None:
    assert [arm.name for arm in AblationSettings(arms=("restart", "restart")).chosen_arms()] == ["memento", "restart"]


def test_unknown_fields_of_sampling_are_refused() -> None:
    with pytest.raises(gt.UserError, match="sampling has no temp"):
        AblationSettings(sampling={"temp": 1.0})


def test_benchmarks_are_names_or_objects_and_each_has_its_own_name() -> None:
    (ledger_h1,) = gt.load_bench("ledger-h1", 3)
    assert [bench.name for bench in as_benches(["ledger-h0", ledger_h1])] == ["ledger-h0", "ledger-h1"]
    with pytest.raises(gt.UserError, match="two benchmarks are called 'ledger-h1'"):
        as_benches([ledger_h1, replace(ledger_h1, problems=ledger_h1.problems[:2])])
    with pytest.raises(gt.UserError, match="no benchmark"):
        as_benches([])
    with pytest.raises(gt.UserError, match="repeats the id"):
        replace(ledger_h1, problems=ledger_h1.problems[:1] * 2)
    with pytest.raises(gt.UserError, match="holds no problems"):
        gt.ablate("toy-mixed", replace(ledger_h1, problems=()))


def test_an_arm_that_needs_counterfactual_blocks_is_refused_where_there_are_none() -> None:
    model, swap = gt.load("toy-mixed"), gt.ARMS["swap"]()
    own = type("Own", (gt.Defence,), {"name": "own", "summary": "swaps", "arm": lambda self, checkpoint: swap})()
    with pytest.raises(gt.UserError, match="needs counterfactual blocks"):
        gt.bits(model, bench="ledger-h1", arms=[swap], limit=1)
    with pytest.raises(gt.UserError, match="needs counterfactual blocks"):
        own.check(model)


def test_sources_with_similar_names_get_separate_figures() -> None:
    (ledger_h1,) = gt.load_bench("ledger-h1", 1)
    benches = [replace(ledger_h1, name="a b"), replace(ledger_h1, name="a-b")]
    result = gt.patch("toy-mixed", benches, kind="seal", block=-1)
    assert list(result.figures()) == ["patch-a-b-block_-1", "patch-a-b-block_-1-1"]


@dataclass(frozen=True)
class Own(gt.Attack):
    name = "own"
    title = "Own"
    summary = "An attack."
    threat = INSIDER

    def run(self, context):
        return []


@dataclass(frozen=True)
class Counts(Own):
    counts_bits = True


class Secrets:
    secrets = ("note-*",)


@pytest.mark.parametrize(
    "attack, change",
    [
        (Own(), {"gate": True}),  # an attack that does not measure bits
        (Counts(), {"gate": True, "unit": "rate"}),
        (Counts(), {"gate": True, "condition": "sealed"}),
        (Counts(), {"secret": "none"}),
        (Counts(), {"attack": "attribute"}),
    ],
)
def test_invalid_findings_are_refused(attack, change) -> None:
    finding = Evidence("own", "note-*", "open", "bits", AttackEstimate(0.9, 0.8, 1.0), 100)
    assert check_findings(attack, [finding], Secrets()) == [finding]
    with pytest.raises(gt.UserError, match="attack own returned"):
        check_findings(attack, [replace(finding, **change)], Secrets())


def test_attacks_and_defences_are_validated() -> None:
    with pytest.raises(gt.UserError, match="give an object of the class"):
        resolve_attacks([Own])
    with pytest.raises(gt.UserError, match="give an object of the class"):
        resolve_defence(gt.DEFENCES["restart"])
    untitled = dataclass(frozen=True)(type("Untitled", (gt.Attack,), {"name": "untitled", "run": Own.run}))()
    with pytest.raises(gt.UserError, match="has no title"):
        resolve_attacks([untitled])


def test_defence_options_may_be_strings() -> None:
    @dataclass(frozen=True)
    class Named(gt.Defence):
        name = "named"
        summary = "a defence"
        usage = "named:WHAT,SIZE"
        what: str = "x"
        size: float = 0.5

        def arm(self, checkpoint):
            return Restart()

    assert Named().spec == "named:x,0.5"


def test_user_defined_threat_needs_a_new_name() -> None:
    other = dataclass(frozen=True)(type("Other", (Own,), {"threat": Threat("reader", "reads", "stop")}))()
    with pytest.raises(gt.UserError, match="two threats are called 'reader'"):
        AuditSettings(resolve_attacks(["attribute", other]), resolve_defence("none"), ProbeSettings())


def test_probe_classes_are_refused() -> None:
    with pytest.raises(gt.UserError, match="is no probe"):
        ProbeSettings(probes=("mlp",))


def test_run_json_converts_numpy_values_and_paths() -> None:
    converted = as_json({"limit": np.int64(3), "layers": np.arange(2), "file": Path("a") / "b"})
    assert converted == {"limit": 3, "layers": [0, 1], "file": "a/b"}


def test_method_is_recorded_without_memory_addresses() -> None:
    @dataclass(frozen=True)
    class Held:
        what: object

    assert " at 0x" not in stable_repr(Held(object()))
    assert stable_repr(Held(object())) == stable_repr(Held(object()))


def test_built_in_arms_may_be_objects() -> None:
    arms = (gt.ARMS["memento"](), gt.ARMS["placebo"](), Restart())
    assert [arm.name for arm in AblationSettings(arms=arms).chosen_arms()] == ["memento", "placebo", "restart"]


def test_single_name_may_be_a_string() -> None:
    by_name, by_object = (
        gt.bits("toy-mixed", bench="ledger-h1", arms=arms, limit=2) for arms in ("restart,full", ["restart", "full"])
    )
    assert by_name == by_object
    assert set(gt.ablate("toy-mixed", "ledger-h1", "restart", limit=2).results["arm"]) == {"memento", "restart"}
    with pytest.raises(gt.UserError, match="no arm 'restrat'"):
        gt.ablate("toy-mixed", "ledger-h1", "restrat")
