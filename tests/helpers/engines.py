"""vLLM engines in this process, and reference log-probabilities to compare them with."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

import ghosttrace as gt
from ghosttrace.ablation.arms import ARMS, Arm
from ghosttrace.law.expiry import ExpiryTracker, MementoLaw, Policy, expiry
from ghosttrace.law.law import Law
from ghosttrace.model.attention import attending, pad_batch
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session
from ghosttrace.serving.settings import OVERRIDE_PREFIX
from ghosttrace.serving.vllm.engine_args import engine_args

MAX_LOGPROB_ERROR = 1e-4
"""Largest accepted difference of two float32 log-probabilities, in nats."""
WORDS = range(10, 35)
PAGE = 32
PAGE_BYTES = PAGE * 2048  # for `make_model`: 4 layers, keys and values, 2 heads, head size 32, 4 bytes per number


@dataclass(frozen=True)
class Script:
    """Harness that forces a given response after a prompt."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __call__(self, tracker: ExpiryTracker) -> int | None:
        """Return the next token of the response, or None after its end."""
        rest = self.response[tracker.block_tracker.num_read - len(self.prompt) :]
        return rest[0] if rest else None

    @property
    def tokens(self) -> list[int]:
        """Token ids of prompt and response."""
        return [*self.prompt, *self.response]


def make_model(folder: Path) -> Checkpoint:
    """Save and load a random Qwen3 with the tokenizer and policy of the toys.

    Its weights are large enough that a single visible key changes log-probabilities by nats, and small enough that
    the rounding error of float32 stays well below `MAX_LOGPROB_ERROR`, which is not true of the toys.
    """
    toy = gt.load("toy-open")
    config = Qwen3Config(
        vocab_size=len(toy.tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    config.ghosttrace = {"policy": toy.policy.to_dict()}
    Qwen3ForCausalLM(config).save_pretrained(folder)
    toy.tokenizer.save_pretrained(folder)
    return gt.load(str(folder))


@contextmanager
def serving(model: str, pages: int = 400, **options: Any) -> Iterator[LLM]:
    """Yield an engine, and check on exit that all its pages are free."""
    stock = options.pop("plain", False)
    erasure_options = {
        name: options.pop(name) for name in ("arm", "async_scheduling", "max_block_tokens", "law") if name in options
    }
    policy = options.pop("policy", {})
    start: dict[str, Any] = (
        {"model": engine_args(model)["model"]} if stock else engine_args(model, **erasure_options, **policy)
    )
    options = {"enforce_eager": True, "max_model_len": 512, "max_num_batched_tokens": 64, "max_num_seqs": 16} | options
    llm = LLM(
        **start,
        dtype="float32",
        kv_cache_memory_bytes=(pages + 1) * PAGE_BYTES,
        block_size=PAGE,
        max_logprobs=-1,
        **options,
    )
    try:
        yield llm
        pool = scheduler(llm).kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1, "pages leaked"
        assert not getattr(scheduler(llm), "slot_trackers", {})
    finally:
        del llm
        cleanup_dist_env_and_memory()


def scheduler(llm: LLM) -> Any:
    """Return the engine's scheduler."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def sampling_params(script: Script, **overrides: Any) -> SamplingParams:
    """Return sampling parameters that force this script and request all log-probabilities."""
    return SamplingParams(
        max_tokens=len(script.response),
        temperature=0,
        logprobs=-1,
        ignore_eos=True,
        detokenize=False,
        extra_args={OVERRIDE_PREFIX + name: value for name, value in {"harness": script, **overrides}.items()},
    )


def response_logprobs(answer: Any) -> torch.Tensor:
    """Return the log-probabilities of a response: float[n, V]."""
    return torch.tensor([[row[token].logprob for token in range(len(row))] for row in answer.logprobs])


def generate_logprobs(llm: LLM, scripts: Sequence[Script], **overrides: Any) -> list[torch.Tensor]:
    """Return log-probabilities of each token of each response: float[n, V]."""
    params = [sampling_params(script, **overrides) for script in scripts]
    outputs = llm.generate([{"prompt_token_ids": list(script.prompt)} for script in scripts], params, use_tqdm=False)
    assert all(tuple(o.outputs[0].token_ids) == script.response for o, script in zip(outputs, scripts, strict=True))
    return [response_logprobs(output.outputs[0]) for output in outputs]


def masked_logprobs(checkpoint: Checkpoint, scripts: Sequence[Script], law: Policy | Law) -> list[torch.Tensor]:
    """Return log-probabilities of each response token from a masked forward pass of transformers: float[n, V]."""
    results = []
    for script in scripts:
        known = MementoLaw(checkpoint.markup, law) if isinstance(law, Policy) else law
        batch = pad_batch([script.tokens], [expiry(script.tokens, known)], pad_id=0)
        with attending(checkpoint.model, "sdpa"), torch.no_grad():
            logits = checkpoint.model(**batch.inputs, use_cache=False).logits[0]
        results.append(logits[len(script.prompt) - 1 : -1].log_softmax(-1))
    return results


def session_logprobs(checkpoint: Checkpoint, scripts: Sequence[Script], arm: Arm) -> list[torch.Tensor]:
    """Return log-probabilities of each response token from a `Session` under an arm: float[n, V]."""
    results = []
    for script in scripts:
        with attending(checkpoint.model):
            one_row = Session(
                checkpoint.model, checkpoint.markup, arm.adapt_policy(checkpoint.policy), [(0,)], arm.eraser
            )
            one_row.advance([list(script.prompt)])
            logits = [one_row.logits[0]]
            for token in script.response[:-1]:
                one_row.advance([[token]])
                logits.append(one_row.logits[0])
        results.append(torch.stack(logits).log_softmax(-1))
    return results


def replayed_logprobs(checkpoint: Checkpoint, scripts: Sequence[Script], arm: Arm) -> list[torch.Tensor]:
    """Return log-probabilities of each response token from a `Session` that reads prompt and response at once."""
    results = []
    for script in scripts:
        with attending(checkpoint.model):
            law = arm.adapt_law(checkpoint.law)
            one_row = Session(checkpoint.model, checkpoint.markup, checkpoint.policy, [(0,)], arm.eraser, law)
            (logits,) = one_row.advance([script.tokens], all_logits=True)
        results.append(logits[len(script.prompt) - 1 : -1].log_softmax(-1))
    return results


def max_difference(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Return the largest absolute difference, in nats."""
    return max(float((a - b).abs().max()) for a, b in zip(actual, expected, strict=True))


def random_scripts(checkpoint: Checkpoint, rng: np.random.Generator, count: int) -> list[Script]:
    """Return scripts of random structure: complete, cut, nested and empty blocks, also in prompts, shared prefixes."""
    markup, words = checkpoint.markup, list(range(10, 35))
    shared = [checkpoint.tokenizer.get_vocab()["<|user|>"], *rng.choice(words, 70).tolist()]
    scripts = []
    for number in range(count):
        head = shared if number % 3 == 0 else [shared[0], *rng.choice(words, rng.integers(1, 30)).tolist()]
        tokens = [*head, *markup.assistant_header]
        start = len(tokens)
        for _ in range(rng.integers(1, 5)):
            parts = [rng.choice(words, size).tolist() for size in (rng.integers(0, 60), rng.integers(0, 20), 3)]
            block = [markup.block_start, *parts[0], markup.block_end, markup.summary_start, *parts[1]]
            block += [markup.summary_end, *parts[2]]
            if rng.random() < 0.25:  # malformed: a delimiter is repeated or out of order
                block.insert(int(rng.integers(len(block))), int(rng.choice(markup.delimiters)))
            tokens += block
        cut = start + int(rng.integers(0, len(tokens) - start - 4)) * (number % 2)
        scripts.append(Script(tuple(tokens[:cut]), tuple(tokens[cut:])))
    return scripts


class TraceBuilder:
    """Builder of traces of random words, which differ between seeds."""

    def __init__(self, checkpoint: Checkpoint, seed: int) -> None:
        self._ids, self._seed = checkpoint.markup, seed
        self.head = [checkpoint.tokenizer.get_vocab()["<|user|>"], *self.words(6), *self._ids.assistant_header]

    def words(self, count: int) -> list[int]:
        """Return this many random words."""
        self._seed += 1
        draw = torch.Generator().manual_seed(self._seed)
        return torch.randint(WORDS.start, WORDS.stop, (count,), generator=draw).tolist()

    def block(self, length: int = 20) -> list[int]:
        """Return a block with `length` random words."""
        return [self._ids.block_start, *self.words(length), self._ids.block_end]

    def memento(self, length: int = 6) -> list[int]:
        """Return a memento with `length` random words."""
        return [self._ids.summary_start, *self.words(length), self._ids.summary_end]

    def pair(self, length: int = 20) -> list[int]:
        """Return a block with `length` random words and its memento."""
        return [*self.block(length), *self.memento()]


def check_logprobs(
    checkpoint: Checkpoint,
    scripts: Sequence[Script],
    actual: Sequence[torch.Tensor],
    erases: bool = True,
    arm: str = "memento",
) -> None:
    """Assert that log-probabilities equal the reference of `arm` and (if `erases`) differ from full attention."""
    expected = masked_logprobs(checkpoint, scripts, checkpoint.policy) if arm == "memento" else None
    assert max_difference(actual, expected or session_logprobs(checkpoint, scripts, ARMS[arm]())) < MAX_LOGPROB_ERROR
    full = masked_logprobs(checkpoint, scripts, Policy(checkpoint.policy.mask_delimiters, -1))
    for a, b in zip(actual, full, strict=True):
        assert (max_difference([a], [b]) > 1) == erases


@contextmanager
def replace_schedule(llm: LLM, act: Callable[[Any, Callable[[], Any]], Any]) -> Iterator[None]:
    """Call `act(scheduler, schedule)` in place of every `schedule` of the scheduler."""
    planner = scheduler(llm)
    schedule = planner.schedule
    planner.schedule = lambda *args, **kwargs: act(planner, lambda: schedule(*args, **kwargs))
    try:
        yield
    finally:
        del planner.schedule
