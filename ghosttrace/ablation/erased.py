"""What the responses of an ablation erased, and whether there was anything to measure."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ghosttrace.ablation.arms import Arm
from ghosttrace.law.expiry import Policy
from ghosttrace.law.law import Law
from ghosttrace.runs.folder import REFERENCE_ARM
from ghosttrace.runs.records import RecordKey, Records

NEXT_STEPS = (
    "measure the channel on given text with ghosttrace bits, or train the model to write mementos with ghosttrace sft"
)
NOTHING_SWAPPED = "no response has a block as long as its counterfactual: nothing was swapped (leave out this arm)"
KEEPS_ALL = "the policy keeps every block: nothing was erased (give --keep-last-n-blocks 0)"


def response_counts(part: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of `summarise` on the blocks and answers of one arm's responses.

    Args:
        part: The samples of one benchmark and arm.
    """
    return {
        "blocks": float(part["blocks"].mean()),
        "without_blocks": int((part["blocks"] == 0).sum()),
        "unextracted": int(part["extracted"].isna().sum()),
    }


def nothing_erased(samples: pd.DataFrame, arms: Mapping[str, Arm], policy: Policy) -> tuple[str, ...]:
    """Return one message for each comparison in which nothing was erased, so that nothing was measured.

    Arms share their random draws, so their responses are equal up to the first erasure. If no response of `memento`
    has one, every effect is zero whatever the channel carries. The same holds for an arm that erases blocks, if none
    of its responses has enough of them, and for an arm that swaps mementos, if it swapped none.

    Args:
        samples: One row per sample (columns of `ghosttrace.ablation.samples.SAMPLE_SCHEMA`).
        arms: The arms of the run, by name.
        policy: The checkpoint's policy.

    Returns:
        The messages; empty if every arm had something to measure. They name the next step.
    """
    by_arm = samples.groupby(["bench", "arm"], sort=False, as_index=False)
    maxima = by_arm.agg(
        blocks=("blocks", "max"),
        swapped=("donor_answer", "count"),
        truncated=("finish", lambda finish: (finish == "length").all()),
    )
    found: dict[str, list[str]] = {}  # benchmarks by what is missing on them
    for bench, rows in maxima.groupby("bench", sort=False):
        missing = {row["arm"]: _missing(arms[row["arm"]], policy, row) for row in rows.to_dict("records")}
        reference = missing.pop(REFERENCE_ARM)
        if missing and arms[REFERENCE_ARM].adapt_policy(policy).min_blocks is None:
            reference = KEEPS_ALL
        texts = [f"under {arm}, {text}" for arm, text in missing.items() if text]
        for text in texts if reference is None else [reference]:
            found.setdefault(text, []).append(str(bench))
    return tuple(f"{', '.join(benches)}: {text}" for text, benches in found.items())


def law_erased_nothing(records: Records, order: Sequence[RecordKey], law: Law) -> tuple[str, ...]:
    """Return one message for each benchmark on which a law has erased nothing from the responses of `memento`.

    Args:
        records: The samples of the run.
        order: Keys of all samples.
        law: The law of the run, which is not Memento's.
    """
    erased: dict[str, bool] = {}
    for key in order:
        bench, arm = str(key[0]), key[1]
        if arm == REFERENCE_ARM and not erased.get(bench):
            sample = records.get(key)
            ids = [*sample["prompt_ids"], *sample["response_ids"]]
            erased[bench] = any(erasure.first_affected < len(ids) for erasure in law.erasures(ids))
    text = f"no response is long enough for the law {law.spec} to erase anything (raise --max-new-tokens)"
    return tuple(f"{bench}: {text}" for bench, some in erased.items() if not some)


def nothing_swapped(samples: pd.DataFrame, arms: Mapping[str, Arm]) -> tuple[str, ...]:
    """Return one message for each benchmark and arm that should have swapped text, and swapped none.

    Args:
        samples: One row per sample (columns of `ghosttrace.ablation.samples.SAMPLE_SCHEMA`).
        arms: The arms of the run, by name.
    """
    counts = samples.groupby(["bench", "arm"], sort=False, as_index=False).agg(swapped=("donor_answer", "count"))
    return tuple(
        f"{row['bench']}: under {row['arm']}, {NOTHING_SWAPPED}"
        for row in counts.to_dict("records")
        if arms[row["arm"]].needs_counterfactuals and not row["swapped"]
    )


def _missing(arm: Arm, policy: Policy, maxima: Mapping[Any, Any]) -> str | None:
    """Return why an arm had nothing to act on, and the next step; None if it had something.

    An arm that erases nothing, such as `full`, differs from `memento` wherever `memento` erases.

    Args:
        arm: The arm.
        policy: The checkpoint's policy.
        maxima: Largest number of `blocks` of a response, number of `swapped` responses, whether all are `truncated`.
    """
    min_blocks = arm.adapt_policy(policy).min_blocks
    if min_blocks is not None and maxima["blocks"] < min_blocks:
        finished = "a block" if min_blocks == 1 else f"the {min_blocks} blocks after which one is erased"
        steps = f"raise --max-new-tokens, {NEXT_STEPS}" if maxima["truncated"] else NEXT_STEPS
        return f"no response finished {finished}: nothing was erased ({steps})"
    if arm.needs_counterfactuals and not maxima["swapped"]:
        return NOTHING_SWAPPED
    return None
