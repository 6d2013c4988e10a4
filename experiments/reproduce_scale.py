"""Sizes of `experiments/reproduce_paper.py`: the paper's (arXiv 2604.09852), and a rehearsal's."""

from dataclasses import dataclass

ARMS = ("restart", "restart-renumbered", "restart-bare", "placebo")
"""Restarts at the original positions, at consecutive ones, and without delimiters; and the control of numerics."""


@dataclass(frozen=True)
class Scale:
    """Sizes of all steps.

    Attributes:
        rows: Number of training rows.
        epochs: Epochs of each of the two stages.
        max_length: Longest row in tokens.
        batch: Rows per optimiser step.
        learning_rate: Peak of the learning rate.
        problems: Number of problems of AIME24 and of AIME25.
        repetitions: Samples per problem of AIME24 under each arm.
        trace_repetitions: Samples per problem of AIME25, in which passcodes are planted.
        codes_per_trace: Passcodes planted in each of these samples.
        max_new_tokens: Longest response in tokens.
        batch_tokens: Tokens per batch of the probes' forward passes.
        arms: Arms beside `memento`.
        max_steps: Optimiser steps of each stage; None for all epochs.
    """

    rows: int
    epochs: int
    max_length: int
    batch: int
    learning_rate: float
    problems: int
    repetitions: int
    trace_repetitions: int
    codes_per_trace: int
    max_new_tokens: int
    batch_tokens: int = 16_384
    arms: tuple[str, ...] = ARMS
    max_steps: int | None = None


PAPER = Scale(
    rows=31_000,
    epochs=5,
    max_length=32_768,
    batch=512,
    learning_rate=8e-5,
    problems=30,
    repetitions=64,
    trace_repetitions=1,
    codes_per_trace=500,
    max_new_tokens=32_000,
)
"""Sections 4 and 6.2; 500 passcodes in each of 30 traces are the paper's 15,000 samples."""

REHEARSAL = Scale(
    rows=8,
    epochs=1,
    max_length=512,
    batch=2,
    learning_rate=8e-5,
    problems=2,
    repetitions=2,
    trace_repetitions=1,
    codes_per_trace=40,
    max_new_tokens=128,
    max_steps=2,
)
"""As small as every step allows: of the passcodes, each digit must occur twice at each place."""
