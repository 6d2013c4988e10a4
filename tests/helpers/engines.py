"""vLLM in this process, and the references that its log-probabilities are compared with."""

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
from ghosttrace.law.expiry import ExpiryTracker, Policy, expiry
from ghosttrace.model.attention import attending, pad_batch
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.session import Session
from ghosttrace.serving.settings import OVERRIDE_PREFIX
from ghosttrace.serving.vllm.engine_args import engine_args

MAX_LOGPROB_ERROR = 1e-4
"""Within which log-probabilities are the same, in float32."""
WORDS = range(10, 35)
PAGE = 32
PAGE_BYTES = PAGE * 2048  # of `make_model`: 4 layers, keys and values, 2 heads of 32 numbers of 4 bytes


@dataclass(frozen=True)
class Script:
    """A harness that writes a response token by token after a prompt."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __call__(self, tracker: ExpiryTracker) -> int | None:
        """The next token of the response, as long as there is one: an engine may ask once too often."""
        rest = self.response[tracker.block_tracker.num_read - len(self.prompt) :]
        return rest[0] if rest else None

    @property
    def tokens(self) -> list[int]:
        """Prompt and response."""
        return [*self.prompt, *self.response]


def make_model(folder: Path) -> Checkpoint:
    """A random Qwen3 with the toys' tokenizer and law.

    Its weights are large enough that a key more or less is worth nats, and small enough that float32's own
    error is below 3e-5 nats. (On text like this the toys themselves are 2e-4 from their float64 selves.)
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
    """An engine, gone on exit; no page of it may be left in use."""
    plain = options.pop("plain", False)
    law = {name: options.pop(name) for name in ("arm", "async_scheduling", "max_block_tokens") if name in options}
    policy = options.pop("policy", {})
    start: dict[str, Any] = {"model": engine_args(model)["model"]} if plain else engine_args(model, **law, **policy)
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


def scripted(script: Script, **overrides: Any) -> SamplingParams:
    """Return parameters that write this script and ask for all log-probabilities."""
    return SamplingParams(
        max_tokens=len(script.response),
        temperature=0,
        logprobs=-1,
        ignore_eos=True,
        detokenize=False,
        extra_args={OVERRIDE_PREFIX + name: value for name, value in {"harness": script, **overrides}.items()},
    )


def logprobs(answer: Any) -> torch.Tensor:
    """Return the log-probabilities of a response: float[n, V]."""
    return torch.tensor([[row[token].logprob for token in range(len(row))] for row in answer.logprobs])


def generate_logprobs(llm: LLM, scripts: Sequence[Script], **overrides: Any) -> list[torch.Tensor]:
    """Return log-probabilities of each token of each response: float[n, V]."""
    params = [scripted(one, **overrides) for one in scripts]
    outputs = llm.generate([{"prompt_token_ids": list(one.prompt)} for one in scripts], params, use_tqdm=False)
    assert all(tuple(o.outputs[0].token_ids) == one.response for o, one in zip(outputs, scripts, strict=True))
    return [logprobs(output.outputs[0]) for output in outputs]


def masked(checkpoint: Checkpoint, scripts: Sequence[Script], policy: Policy) -> list[torch.Tensor]:
    """The same from one masked forward pass of transformers."""
    found = []
    for one in scripts:
        batch = pad_batch([one.tokens], [expiry(one.tokens, checkpoint.markup, policy)], pad_id=0)
        with attending(checkpoint.model, "sdpa"), torch.no_grad():
            logits = checkpoint.model(**batch.inputs, use_cache=False).logits[0]
        found.append(logits[len(one.prompt) - 1 : -1].log_softmax(-1))
    return found


def session(checkpoint: Checkpoint, scripts: Sequence[Script], arm: Arm) -> list[torch.Tensor]:
    """The same from a `Session` under any arm, a token at a time."""
    found = []
    for one in scripts:
        with attending(checkpoint.model):
            one_row = Session(
                checkpoint.model, checkpoint.markup, arm.adapt_policy(checkpoint.policy), [(0,)], arm.eraser
            )
            one_row.advance([list(one.prompt)])
            logits = [one_row.logits[0]]
            for token in one.response[:-1]:
                one_row.advance([[token]])
                logits.append(one_row.logits[0])
        found.append(torch.stack(logits).log_softmax(-1))
    return found


def max_difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest difference, in nats."""
    return max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True))


def workload(checkpoint: Checkpoint, rng: np.random.Generator, count: int) -> list[Script]:
    """Requests of random structure: whole, cut, nested and empty blocks, some in the prompt, some prefixes shared."""
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
            if rng.random() < 0.25:  # something is missing, or stands where it should not
                block.insert(int(rng.integers(len(block))), int(rng.choice(markup.delimiters)))
            tokens += block
        cut = start + int(rng.integers(0, len(tokens) - start - 4)) * (number % 2)
        scripts.append(Script(tuple(tokens[:cut]), tuple(tokens[cut:])))
    return scripts


class TraceBuilder:
    """Writes traces of this checkpoint: words that differ from one trace to the next."""

    def __init__(self, checkpoint: Checkpoint, seed: int) -> None:
        self._ids, self._seed = checkpoint.markup, seed
        self.head = [checkpoint.tokenizer.get_vocab()["<|user|>"], *self.words(6), *self._ids.assistant_header]

    def words(self, count: int) -> list[int]:
        """Return this many random words."""
        self._seed += 1
        draw = torch.Generator().manual_seed(self._seed)
        return torch.randint(WORDS.start, WORDS.stop, (count,), generator=draw).tolist()

    def block(self, length: int = 20) -> list[int]:
        """A block with so many words."""
        return [self._ids.block_start, *self.words(length), self._ids.block_end]

    def memento(self, length: int = 6) -> list[int]:
        """Return a memento with this many words."""
        return [self._ids.summary_start, *self.words(length), self._ids.summary_end]

    def pair(self, length: int = 20) -> list[int]:
        """A block and its memento."""
        return [*self.block(length), *self.memento()]


def check_logprobs(
    checkpoint: Checkpoint,
    scripts: Sequence[Script],
    found: Sequence[torch.Tensor],
    erases: bool = True,
    arm: str = "memento",
) -> None:
    """Assert that they are those of the law or of the arm's session, and not those of full attention."""
    law = masked(checkpoint, scripts, checkpoint.policy) if arm == "memento" else None
    assert max_difference(found, law or session(checkpoint, scripts, ARMS[arm]())) < MAX_LOGPROB_ERROR
    full = masked(checkpoint, scripts, Policy(checkpoint.policy.mask_delimiters, -1))
    for one, other in zip(found, full, strict=True):
        assert (max_difference([one], [other]) > 1) == erases


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
