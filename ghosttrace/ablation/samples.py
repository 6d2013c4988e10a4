"""The samples table of an ablation: one row per benchmark, arm, problem and repetition."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa

from ghosttrace.runs.records import RecordLayout

SAMPLE_SCHEMA = pa.schema(
    {
        "bench": pa.string(),
        "arm": pa.string(),
        "problem": pa.string(),
        "cluster": pa.string(),
        "repetition": pa.int32(),
        "correct": pa.bool_(),
        "extracted": pa.string(),
        "rule": pa.string(),
        "answer": pa.string(),
        "donor_answer": pa.string(),
        "finish": pa.string(),
        "blocks": pa.int32(),
        "response_tokens": pa.int32(),
        "peak_kv_tokens": pa.int64(),
        "auc_kv_tokens": pa.int64(),
        "prompt_sha256": pa.string(),
        "prompt": pa.string(),
        "response": pa.string(),
        "prompt_ids": pa.list_(pa.int32()),
        "response_ids": pa.list_(pa.int32()),
        # Under another law than Memento's: the whole prompt as text, and for each token of prompt and response the
        # number of characters up to its end. A report shows with them which text left.
        "prompt_text": pa.string(),
        "token_ends": pa.list_(pa.int32()),
    }
)
LARGE_COLUMNS = ("prompt", "response", "prompt_ids", "response_ids", "prompt_text", "token_ends")
SMALL_COLUMNS = tuple(name for name in SAMPLE_SCHEMA.names if name not in LARGE_COLUMNS)

SAMPLE_TABLE = RecordLayout(SAMPLE_SCHEMA, ("bench", "arm", "problem", "repetition"))


def problem_clusters(samples: pd.DataFrame, problems: Iterable[str]) -> np.ndarray:
    """Return the cluster of each of the problems of one benchmark, in the given order."""
    cluster_of = samples.groupby("problem", sort=False)["cluster"].first()
    return cluster_of.loc[list(problems)].to_numpy()
