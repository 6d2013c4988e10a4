"""Question: does reinforcement learning raise a language model's reward where it must use its ghost channel?

The start is `smollm2-open`; the prompts are problems of `story-needed-observed`, whose answers need a number that only
the erased block held. A hundred steps of one group of eight responses each train adapters. Accuracy over an open and a
sealed cache and ghost bits are measured before and after on other problems, also where nothing is omitted.

Writes `experiments/results/rl_story.parquet` (one row per step) and `rl_story_channel.parquet`. `PYTHONPATH=. python
experiments/rl_story.py` resumes an interrupted run; `--work FOLDER` takes its folder. On one core it takes an hour.
"""

import argparse
from pathlib import Path

import torch

from ghosttrace.training.result import RLResult
from ghosttrace.training.rl import RLRecipe, rl

ROOT = Path(__file__).parent.parent
FLAGS = {
    "max_completion_length": 160,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "dtype": "bfloat16",
    "use_peft": True,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_target_modules": "all-linear",
    "learning_rate": 1e-4,
    "warmup_steps": 5,
    "max_steps": 100,
    "save_steps": 10,
    "logging_steps": 1,
    "seed": 0,
    "disable_tqdm": True,
}
RECIPE = RLRecipe(
    "smollm2-open",
    "story-needed-observed",
    rewards="correct,format:0.1",
    limit=2048,
    channel_every=100,
    channel_bench="story-complete-derived,story-needed-observed",
    channel_problems=40,
    trainer=tuple(text for name, value in FLAGS.items() for text in (f"--{name}", str(value))),
)


def main() -> None:
    """Train, or go on with it, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "rl_story", help="run folder")
    folder = parser.parse_args().work
    torch.set_num_threads(1)
    if not (folder / "summary.json").exists():
        begun = (folder / "run.json").exists()
        rl(RECIPE, *((None, folder) if begun else (folder, None)))
    run = RLResult.open(folder)
    results = ROOT / "experiments" / "results"
    run.log.to_parquet(results / "rl_story.parquet", index=False)
    run.channel.to_parquet(results / "rl_story_channel.parquet", index=False)


if __name__ == "__main__":
    main()
