"""Rollouts for reinforcement learning: graded responses to the problems of a benchmark, written under a law."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ghosttrace.ablation.arms import Arm, Memento, Restart
from ghosttrace.bench import Bench, Problem, final_text
from ghosttrace.law.expiry import MementoLaw, Policy
from ghosttrace.law.law import Law
from ghosttrace.law.markup import Markup
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.generate import Generation, Request, generate
from ghosttrace.model.sampling import Sampling
from ghosttrace.training.channel import answer_bits
from ghosttrace.training.format_samples import has_pairs
from ghosttrace.training.sft import base_model

if TYPE_CHECKING:
    from ghosttrace.training.vllm_rollouts import VllmWriter


@dataclass
class Rollouts:
    """Rollout function of the trainer: writes one response per prompt and grades it.

    Random draws depend on the seed, the training step, the process and the row alone, so that a resumed run writes
    what an uninterrupted one writes.

    Attributes:
        bench: Problems, harness and grader. The trainer's prompts are the ids of the problems.
        tokenizer: Tokenizer of the model.
        prompt_ids: Function of a user message (or a chat) to the token ids of the prompt.
        markup: Token ids of the delimiters.
        law: Which tokens leave the cache and when.
        sampling: Sampling parameters.
        sealed: Whether the retained tokens are recomputed after every erasure.
        seed: Random seed.
        measures_channel: Whether each response comes with the ghost bits at its answer, which take two passes over it.
        name: Name of the model.
        engine: vLLM engine that writes the responses; None lets the model that is trained write them.
    """

    bench: Bench
    tokenizer: Any
    prompt_ids: Callable[[Any], list[int]]
    markup: Markup
    law: Law
    sampling: Sampling
    sealed: bool = False
    seed: int = 0
    measures_channel: bool = False
    name: str = "policy"
    engine: "VllmWriter | None" = None
    _by_id: dict[str, Problem] = field(init=False)
    _calls: tuple[int, int] = field(init=False, default=(-1, 0))  # the training step, and the calls made at it

    def __post_init__(self) -> None:
        self._by_id = {problem.id: problem for problem in self.bench.problems}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """Return the responses to problems, each of which is repeated once per member of a group.

        Returns:
            `prompt_ids`, `completion_ids`, `logprobs` (nats) and `env_mask` (0 at forced tokens) as TRL expects them,
            and for the rewards one value per response: `correct`, `format`, `compression`, `blocks`, `peak_kv_tokens`,
            `text` and, if measured, `channel` (bits, see `ghosttrace.training.channel.answer_bits`).
        """
        step = trainer.state.global_step
        self._calls = (step, self._calls[1] + 1 if self._calls[0] == step else 0)
        key = (self.seed, step, self._calls[1], trainer.accelerator.process_index)
        requests = [self._request(prompt, (*key, row)) for row, prompt in enumerate(prompts)]
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = model.training
        model.eval()
        checkpoint = self.checkpoint(base_model(model))
        if self.engine is None:
            generations = self._generate(checkpoint, requests)
        else:
            self.engine.load(model, step)
            generations = self.engine(checkpoint, requests)
        graded = [self._grade(prompt, done) for prompt, done in zip(prompts, generations, strict=True)]
        if self.measures_channel:
            ids = [[*done.prompt, *done.tokens] for done in generations]
            for grade, found in zip(graded, answer_bits(checkpoint, ids), strict=True):
                grade["channel"] = float(found)
        model.train(training)
        return {
            "prompt_ids": [done.prompt for done in generations],
            "completion_ids": [done.tokens for done in generations],
            "logprobs": [list(done.log_probs) for done in generations],
            "env_mask": [[int(not forced) for forced in done.forced] for done in generations],
        } | {name: [grade[name] for grade in graded] for name in graded[0]}

    def _request(self, prompt: str, key: tuple[int, ...]) -> Request:
        problem = self._by_id[prompt]
        harness = self.bench.harness(problem, self.tokenizer) if self.bench.harness else None
        return Request(self.prompt_ids(problem.messages or problem.prompt), key, harness)

    def checkpoint(self, model: Any) -> Checkpoint:
        """Return a model under training as a checkpoint under the law."""
        if isinstance(self.law, MementoLaw):
            return Checkpoint(self.name, model, self.tokenizer, self.markup, self.law.policy)
        no_blocks = Policy(False, keep_last_n_blocks=-1)
        return Checkpoint(self.name, model, self.tokenizer, self.markup, no_blocks, other_law=self.law)

    @property
    def arm(self) -> Arm:
        """The arm under which the responses are written."""
        return Restart() if self.sealed else Memento()

    def _generate(self, checkpoint: Checkpoint, requests: list[Request]) -> list[Generation]:
        eraser = self.arm.eraser
        model, markup, policy = checkpoint.model, self.markup, checkpoint.policy
        return generate(model, requests, markup, policy, self.sampling, eraser, law=self.law, log_probs=True)

    def _grade(self, prompt: str, done: Generation) -> dict[str, Any]:
        """Return what the rewards read of a response."""
        ended = done.finish_reason == "eos"
        text = self.tokenizer.decode(done.tokens[:-1] if ended else done.tokens)
        problem = self._by_id[prompt]
        tokens = [*done.prompt, *done.tokens]
        return {
            "correct": self.bench.grade(problem, final_text(text, done.finish_reason)).correct,
            "format": ended and self._in_order(tokens),
            "compression": 1 - done.peak_kv_tokens / len(tokens),
            "blocks": done.blocks,
            "peak_kv_tokens": done.peak_kv_tokens,
            "text": text,
        }

    def _in_order(self, tokens: list[int]) -> bool:
        """Return whether all delimiters are in order and there is at least one block; always under another law."""
        if not isinstance(self.law, MementoLaw):
            return True
        return has_pairs(tokens, self.markup, self.law.policy)
