"""Columns of a leaderboard, in the order of its Parquet file."""

import pyarrow as pa


def _with_interval(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(f"{name}{end}", pa.float64()) for name in names for end in ("", "_low", "_high")]


KINDS = ("ablate", "bits", "audit")
"""Commands whose runs a leaderboard gathers."""

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("benchmark", "model", "law", "defence")),
        ("valid", pa.bool_()),
        ("failures", pa.string()),
        *((name, pa.string()) for name in ("model_sha256", "tokenizer_sha256", "dtype")),
        # ablate
        ("problems_sha256", pa.string()),
        ("n_problems", pa.int64()),
        *_with_interval("accuracy"),
        ("accuracy_rank", pa.int64()),
        ("accuracy_ranked", pa.int64()),
        *_with_interval("effect"),
        *((name, pa.float64()) for name in ("peak_kv_tokens", "peak_kv_bytes", "auc_kv_tokens", "auc_kv_bytes")),
        # bits
        ("bits_traces_sha256", pa.string()),
        ("n_bits_traces", pa.int64()),
        *_with_interval("bits"),
        ("bits_per_trace", pa.float64()),
        # audit
        ("audit_traces_sha256", pa.string()),
        ("n_audit_traces", pa.int64()),
        ("verdict", pa.string()),
        *_with_interval("leak"),
        ("leak_secret", pa.string()),
        ("leak_attack", pa.string()),
        ("leak_fell_back", pa.bool_()),
        ("leak_rank", pa.int64()),
        ("leak_ranked", pa.int64()),
        *_with_interval("exposed"),
        ("utility_unit", pa.string()),
        *_with_interval("utility", "utility_effect"),
        *((name, pa.float64()) for name in ("extra_prefill_tokens", "prefill_ratio", "latency_ratio", "kv_ratio")),
        ("runs", pa.list_(pa.struct([(name, pa.string()) for name in ("kind", "name", "command", "versions")]))),
    ]
)
"""One row per model, law, benchmark and defence. docs/leaderboard.md says what each column means."""
