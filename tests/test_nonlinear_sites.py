"""The sites of an audit's nonlinear probes, the reduction of wide ones, and the limits that an audit accepts."""

import numpy as np
import pytest
import torch

from ghosttrace.auditing.settings import AuditSettings, resolve_attacks, resolve_defence
from ghosttrace.auditing.verdict import Limits
from ghosttrace.errors import UserError
from ghosttrace.probing import nonlinear_sites as module
from ghosttrace.probing.carriers import Carrier
from ghosttrace.probing.nonlinear_sites import nonlinear_sites, reduce_width, width_limit
from ghosttrace.probing.settings import ProbeSettings
from ghosttrace.probing.site import ProbeSite

SITE = ProbeSite(Carrier("memento"), (0,), "k")


def test_sites_cover_every_layer_and_kind_and_their_joints() -> None:
    sites = [(site.layers, site.kv) for site in nonlinear_sites(Carrier("memento"), (0, 1, 5), ("k", "v"))]
    single = [((layer,), kv) for layer in (0, 1, 5) for kv in ("k", "v", "kv")]
    assert sites == [*single, ((0, 1), "kv"), ((1, 5), "kv"), ((0, 1, 5), "kv")]
    assert [(site.layers, site.kv) for site in nonlinear_sites(Carrier("memento"), (2,), ("v",))] == [((2,), "v")]
    assert [site.kv for site in nonlinear_sites(Carrier("memento"), (0, 1), ("k", "kv"))] == [
        "k",
        "kv",
        "k",
        "kv",
        "kv",
    ]
    names = [site.result_columns["layer"] for site in nonlinear_sites(Carrier("memento"), (0, 1, 5), ("v",))]
    assert names == ["0", "1", "5", "0+1", "1+5", "joint"]
    assert ProbeSite(Carrier("memento"), (2, 3), "v").result_columns["layer"] == "joint"


def test_wide_features_are_reduced_by_components_of_the_training_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two codes of very different size both survive; the reduction ignores all but the training samples."""
    monkeypatch.setattr(module, "MAX_WIDTH", 8)
    monkeypatch.setattr(module, "REDUCED_WIDTH", 8)
    rng = np.random.default_rng(0)
    code = rng.choice([-1.0, 1.0], (300, 2))
    states = rng.normal(size=(300, 40)) * 0.1
    states[:, :10] += code[:, :1]
    states[:, 10:20] += code[:, 1:]
    states[:, :10] *= 1000
    features, train = torch.from_numpy(states).float(), np.arange(200)
    reduced = reduce_width(features, width_limit(SITE), train, 0)
    assert reduced.shape == (300, 8)
    weights = np.linalg.lstsq(reduced[:200].numpy(), code[:200], rcond=None)[0]
    assert (np.sign(reduced[200:].numpy() @ weights) == code[200:]).mean() > 0.98
    features[250:] = 0
    torch.testing.assert_close(reduce_width(features, width_limit(SITE), train, 0)[:250], reduced[:250])
    assert (
        reduce_width(features[:, :8], width_limit(SITE), train, 0) is not None
        and reduce_width(features[:, :8], width_limit(SITE), train, 0).shape[1] == 8
    )


def settings(max_leak: float | None = None) -> AuditSettings:
    return AuditSettings(resolve_attacks(["attribute"]), resolve_defence("none"), ProbeSettings(), max_leak)


def test_limit_is_well_below_what_the_text_leaves_unknown() -> None:
    assert settings().limits({"note-*": 9.97, "bit": 3.3}) == Limits(0.1, 0.01)
    rare = settings().limits({"note-*": 9.97, "rare": 0.038, "given": 0.0001})
    assert rare.of("bits", "rare") == pytest.approx(0.0038) and rare.of("bits", "note-*") == 0.1
    assert rare.of("exposed share", "rare") == 0.01
    assert settings(0.01).limits({"rare": 0.038}).of("bits", "rare") == 0.01
    with pytest.raises(UserError, match=r"not well below the 0\.038 bits of rare .* give 0\.0038"):
        settings(0.1).limits({"note-*": 9.97, "rare": 0.038})
    with pytest.raises(UserError, match="the retained text determines rare"):
        settings().limits({"rare": 0.0001})
    for unknown in ({"a": float("nan"), "b": 3.3}, {"b": 3.3, "a": float("nan")}):
        with pytest.raises(UserError, match="no test trace has all parts of a"):
            settings().limits(unknown)


def test_lower_limits_are_named() -> None:
    assert Limits().describe_bits() == "0.1"
    assert Limits(bits_by_secret={"rare": 0.0038}).describe_bits() == "0.1 (0.0038 for rare)"


@pytest.mark.filterwarnings("error")
def test_constant_states_are_cut_without_a_warning() -> None:
    """The states of a delimiter in the first layer are the same in every trace."""
    wide = ProbeSite(Carrier("delimiters"), (0,), "kv")
    assert reduce_width(torch.ones(40, 200), width_limit(wide), np.arange(30), 0).shape == (40, 30)
