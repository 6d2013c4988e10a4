"""Write training rows of the benchmark `story`: `python experiments/story_rows.py --model FOLDER --out FILE.parquet`.

The rows come from the names, things and wordings of the training split. One row in ten has complete mementos and
nothing observed. In the others one step is controlled as in the benchmark, and where its memento omits its number,
every other memento does so with probability 0.25 as well: more omissions per token teach the channel faster.

The loss covers the tokens that the model must write. It excludes sentences that a tool reports, and four in five of the
mementos that omit their number: the model learns that these occur, and writes complete ones if the choice is its own.
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ghosttrace.bench.story import Omission, Source, draw_story, story_harness
from ghosttrace.bench.story_problem import Story
from ghosttrace.law.expiry import ExpiryTracker, Policy
from ghosttrace.law.markup import Markup
from ghosttrace.model.checkpoint import load_config, load_tokenizer
from ghosttrace.model.prompts import chat_prompt
from ghosttrace.training.examples import IGNORE_INDEX

TRAINING_STREAM = 0x570200  # separates training problems from those of the benchmark
SHARES: dict[tuple[Omission, Source], float] = {
    ("complete", "derived"): 0.1,
    ("complete", "observed"): 0.1,
    ("needed", "derived"): 0.25,
    ("needed", "observed"): 0.35,
    ("unneeded", "derived"): 0.1,
    ("unneeded", "observed"): 0.1,
}
FURTHER_OMISSIONS = 0.25
LEARNED_OMISSIONS = 0.2  # share of the traces in which mementos that omit their number are in the loss
TRACKED = Policy(mask_delimiters=False)  # when blocks expire does not matter here: the tracker only counts them


def training_story(rng: np.random.Generator) -> Story:
    """Draw one training problem."""
    conditions = list(SHARES)
    omission, source = conditions[int(rng.choice(len(conditions), p=list(SHARES.values())))]
    story = draw_story(rng, "train", omission, source)
    if omission == "complete":
        return story
    further = np.flatnonzero(rng.random(len(story.steps)) < FURTHER_OMISSIONS)
    return replace(story, omitted=story.omitted | {int(number) for number in further})


def row(
    story: Story, tokenizer: Any, family: str, markup: Markup, learn_omissions: bool = False
) -> dict[str, list[int]]:
    """Return `input_ids` and `labels` of a problem with the response of a perfect model.

    Args:
        story: The problem.
        tokenizer: Tokenizer with delimiters and a chat template.
        family: Model type in transformers, which selects the chat format.
        markup: Token ids of the delimiters and of the assistant's header.
        learn_omissions: Whether mementos that omit their number are in the loss.
    """
    prompt, response = (
        list(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (chat_prompt(tokenizer, family, story.prompt), story.response)
    )
    tokens = [*prompt, *response, tokenizer.eos_token_id if markup.turn_end is None else markup.turn_end]
    harness = story_harness(replace(story, omitted=frozenset()) if learn_omissions else story, tokenizer)
    tracker, labels = ExpiryTracker(markup, TRACKED), []
    for index, token in enumerate(tokens):
        labels.append(IGNORE_INDEX if index < len(prompt) or harness(tracker) is not None else token)
        tracker.push(token)
    return {"input_ids": tokens, "labels": labels}


def rows(model: str, n: int, seed: int) -> Iterator[dict[str, list[int]]]:
    """Yield training rows.

    Args:
        model: Model whose tokenizer and chat format are used, as `ghosttrace init-tokens` wrote it.
        n: Number of rows.
        seed: Random seed of the problems.
    """
    tokenizer, family = load_tokenizer(model), load_config(model).model_type
    markup, rng = Markup.from_tokenizer(tokenizer), np.random.default_rng([seed, TRAINING_STREAM])
    for _ in range(n):
        yield row(training_story(rng), tokenizer, family, markup, bool(rng.random() < LEARNED_OMISSIONS))


def main() -> None:
    """Write the rows to a Parquet file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model with delimiters")
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    parser.add_argument("--traces", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    table = pd.DataFrame(rows(arguments.model, arguments.traces, arguments.seed))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(arguments.out, index=False)
    print(f"{len(table)} rows, {table['input_ids'].str.len().sum()} tokens")


if __name__ == "__main__":
    main()
