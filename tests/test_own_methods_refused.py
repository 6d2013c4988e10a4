"""Arms, benchmarks, probes, attacks and defences of the user's own that cannot be used are refused in one sentence."""

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
from ghosttrace.probing import sweep
from ghosttrace.runs.folder import as_json, stable_repr


def own_arm(name: str, colour: str = "#aa3377") -> gt.Arm:
    kind = type("Own", (gt.Arm,), {"name": name, "summary": "an arm", "colour": colour})
    return dataclass(frozen=True)(kind)()


@dataclass(frozen=True)
class Nameless(gt.Arm):
    pass


@pytest.mark.parametrize("arms", [[own_arm("memento")], ["restart", own_arm("restart")], [own_arm("a"), own_arm("a")]])
def test_two_different_arms_of_one_name_are_refused(arms) -> None:
    with pytest.raises(gt.UserError, match="two arms are called"):
        AblationSettings(arms=tuple(arms))
    with pytest.raises(gt.UserError, match="two arms are called"):
        gt.bits("toy-mixed", bench="ledger-h1", arms=arms, limit=1)


@pytest.mark.parametrize(
    "arm, told",
    [
        (Nameless(), "has no name"),
        (Restart, "give an object of the class"),
        (None, "give a name"),
        (own_arm("red", "red"), "#aa3377"),
    ],
)
def test_what_is_no_arm_is_refused(arm, told) -> None:
    with pytest.raises(gt.UserError, match=told):
        AblationSettings(arms=(arm,))


def test_no_arms_means_the_reference_alone() -> None:
    assert [arm.name for arm in AblationSettings(arms=()).chosen_arms()] == ["memento"]


def test_the_same_arm_twice_runs_once() -> None:
    assert [arm.name for arm in AblationSettings(arms=("restart", "restart")).chosen_arms()] == ["memento", "restart"]


def test_unknown_fields_of_sampling_are_refused() -> None:
    with pytest.raises(gt.UserError, match="sampling has no temp"):
        AblationSettings(sampling={"temp": 1.0})


def test_benchmarks_are_names_or_objects_and_each_has_its_own_name() -> None:
    (one,) = gt.load_bench("ledger-h1", 3)
    assert [bench.name for bench in as_benches(["ledger-h0", one])] == ["ledger-h0", "ledger-h1"]
    with pytest.raises(gt.UserError, match="two benchmarks are called 'ledger-h1'"):
        as_benches([one, replace(one, problems=one.problems[:2])])
    with pytest.raises(gt.UserError, match="no benchmark"):
        as_benches([])
    with pytest.raises(gt.UserError, match="repeats the id"):
        replace(one, problems=one.problems[:1] * 2)
    with pytest.raises(gt.UserError, match="holds no problems"):
        gt.ablate("toy-mixed", replace(one, problems=()))


def test_an_arm_that_needs_counterfactual_blocks_is_refused_where_there_are_none() -> None:
    model, swap = gt.load("toy-mixed"), gt.ARMS["swap"]()
    own = type("Own", (gt.Defence,), {"name": "own", "summary": "swaps", "arm": lambda self, checkpoint: swap})()
    with pytest.raises(gt.UserError, match="needs counterfactual blocks"):
        gt.bits(model, bench="ledger-h1", arms=[swap], limit=1)
    with pytest.raises(gt.UserError, match="needs counterfactual blocks"):
        own.check(model)


def test_sources_with_like_names_have_a_figure_each() -> None:
    (one,) = gt.load_bench("ledger-h1", 1)
    found = gt.patch("toy-mixed", [replace(one, name="a b"), replace(one, name="a-b")], kind="seal")
    assert list(found.figures()) == ["patch-a-b", "patch-a-b-1"]


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
        (Own(), {"gate": True}),  # an attack that counts no bits
        (Counts(), {"gate": True, "unit": "rate"}),
        (Counts(), {"gate": True, "condition": "sealed"}),
        (Counts(), {"secret": "none"}),
        (Counts(), {"attack": "attribute"}),
    ],
)
def test_findings_that_no_verdict_can_rest_on_are_refused(attack, change) -> None:
    found = Evidence("own", "note-*", "open", "bits", AttackEstimate(0.9, 0.8, 1.0), 100)
    assert check_findings(attack, [found], Secrets()) == [found]
    with pytest.raises(gt.UserError, match="attack own returned"):
        check_findings(attack, [replace(found, **change)], Secrets())


def test_attacks_and_defences_are_objects_with_their_fields() -> None:
    with pytest.raises(gt.UserError, match="give an object of the class"):
        resolve_attacks([Own])
    with pytest.raises(gt.UserError, match="give an object of the class"):
        resolve_defence(gt.DEFENCES["restart"])
    untitled = dataclass(frozen=True)(type("Untitled", (gt.Attack,), {"name": "untitled", "run": Own.run}))()
    with pytest.raises(gt.UserError, match="has no title"):
        resolve_attacks([untitled])


def test_options_of_a_defence_may_be_text() -> None:
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


def test_a_threat_of_ones_own_has_a_name_of_its_own() -> None:
    other = dataclass(frozen=True)(type("Other", (Own,), {"threat": Threat("reader", "reads", "stop")}))()
    with pytest.raises(gt.UserError, match="two threats are called 'reader'"):
        AuditSettings(resolve_attacks(["attribute", other]), resolve_defence("none"), sweep.ProbeSettings())


def test_probes_are_objects() -> None:
    with pytest.raises(gt.UserError, match="is no probe"):
        sweep.ProbeSettings(probes=("mlp",))


def test_run_json_takes_numbers_of_numpy_and_paths() -> None:
    found = as_json({"limit": np.int64(3), "layers": np.arange(2), "file": Path("a") / "b"})
    assert found == {"limit": 3, "layers": [0, 1], "file": "a/b"}


def test_a_method_is_recorded_without_addresses() -> None:
    @dataclass(frozen=True)
    class Held:
        what: object

    assert " at 0x" not in stable_repr(Held(object()))
    assert stable_repr(Held(object())) == stable_repr(Held(object()))


def test_built_in_arms_may_be_given_as_objects_too() -> None:
    arms = (gt.ARMS["memento"](), gt.ARMS["placebo"](), Restart())
    assert [arm.name for arm in AblationSettings(arms=arms).chosen_arms()] == ["memento", "placebo", "restart"]


def test_one_name_need_not_be_a_list() -> None:
    one, other = (
        gt.bits("toy-mixed", bench="ledger-h1", arms=arms, limit=2) for arms in ("restart,full", ["restart", "full"])
    )
    assert one == other
    assert set(gt.ablate("toy-mixed", "ledger-h1", "restart", limit=2).results["arm"]) == {"memento", "restart"}
    with pytest.raises(gt.UserError, match="no arm 'restrat'"):
        gt.ablate("toy-mixed", "ledger-h1", "restrat")
