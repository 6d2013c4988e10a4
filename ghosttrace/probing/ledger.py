"""The secrets that `ledger` holds by itself: note digits, and the digits that its mementos hide.

Both are uniformly random given everything retained. Notes are drawn on their own and never used. The
hidden digits of the state after a block are the start plus increments that stand in blocks only; what
the answer tells of their sum is spoiled by the increments of the blocks behind, as random and as hidden.
"""

import numpy as np

from ghosttrace.bench.ledger import BLOCKS, DIGITS, NOTES, STEPS, Ledger
from ghosttrace.data.task import Sample, Target, Task
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint

STREAM = 0x9120BE  # apart from the benchmark's problems and from what models are trained on
CLASSES = tuple("0123456789")


def ledger_task(checkpoint: Checkpoint, level: int, n_samples: int, seed: int = 0, block: int = 1) -> Task:
    """Fresh problems of `ledger`, as a perfect model solves them, each a base trace of its own.

    Args:
        checkpoint: with the tokenizer of the bundled models.
        level: h, 0 to 3 hidden digits.
        n_samples: how many problems.
        seed: which problems.
        block: whose digits are asked for, counted from 0.

    Returns:
        Targets note-0 … note-4 and hidden-0 … hidden-(h-1), the last h digits of the state after the
        block, with their exact posterior: uniform.

    Raises:
        UserError: no such level or block, or a tokenizer that does not spell `ledger`.
    """
    if level not in range(DIGITS + 1) or block not in range(BLOCKS - bool(level)):
        raise UserError(
            f"ledger has levels 0 to {DIGITS} and blocks 0 to {BLOCKS - 1}, the last one at level 0 only, as the "
            f"answer tells what it hides: not level {level}, block {block}"
        )
    tokenizer = checkpoint.tokenizer
    rng = np.random.default_rng([seed, level, STREAM])
    samples = []
    for number in range(n_samples):
        one = Ledger.sample(rng, level)
        response = tokenizer.convert_tokens_to_ids(one.response())
        if None in response or tokenizer.unk_token_id in response:
            raise UserError(f"the tokenizer of {checkpoint.name} does not spell ledger: give a bundled model")
        samples.append(_sample(one, str(number), block, checkpoint.prompt_ids(one.prompt), response))
    names = [f"note-{place}" for place in range(NOTES)] + [f"hidden-{place}" for place in range(level)]
    exact = {name: np.full((n_samples, 10), -np.log(10)) for name in names}
    return Task(f"ledger-h{level}", tuple(samples), tuple(Target(name, CLASSES) for name in names), exact)


def ledger_prompts(level: int) -> dict[str, str]:
    """What a user types to be told the digits: a new block, and steps that add nothing to the state."""
    shown = "".join("a{=note-0}" for _ in range(DIGITS - level))  # digits that the model knows from the memento
    hidden = "".join(f"a{{hidden-{place}}}" for place in range(level))
    notes = "".join(f"{{note-{place}}}" for place in range(NOTES))
    asked = {"note-*": f"<|block_start|>{notes}"}
    return asked | ({"hidden-*": f"<|block_start|>{'0' * NOTES}{shown}{hidden}"} if level else {})


def _sample(one: Ledger, base: str, block: int, prompt: list[int], response: list[int]) -> Sample:
    hidden = np.arange(DIGITS - one.level, DIGITS)
    digits = [*one.notes[block].tolist(), *one.states[block, -1, hidden].tolist()]
    starts = [place for place, token in enumerate(one.response()) if token == "<|block_start|>"]
    begin = len(prompt) + starts[block] + 1
    last_step = NOTES + 2 * DIGITS * (STEPS - 1)  # an increment and a digit each
    where = [*range(NOTES), *(last_step + 2 * hidden + 1).tolist()]
    return Sample(
        ids=[*prompt, *response],
        base=base,
        secret="".join(map(str, digits)),
        block=block,
        where=tuple(begin + place for place in where),
        labels=tuple(digits),
    )
