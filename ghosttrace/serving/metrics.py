"""Prometheus metrics of erasure, exported together with vLLM's own.

The scheduler counts in its own process. `ghosttrace serve` sets PROMETHEUS_MULTIPROC_DIR, so that the server's
`/metrics` aggregates the counts of all processes.
"""

from prometheus_client import Counter, Gauge, Histogram

ERASED_TOKENS = Counter("ghosttrace:erased_tokens", "Keys erased from the cache.")
FREED_PAGES = Counter("ghosttrace:freed_pages", "Pages freed before the end of their request.")
ALIVE_TOKENS = Gauge("ghosttrace:alive_tokens", "Keys in the cache of running requests.", multiprocess_mode="livesum")
REQUEST_BLOCKS = Histogram(
    "ghosttrace:request_blocks", "Finished blocks of a request.", buckets=(0, 1, 2, 4, 8, 16, 32, 64)
)
COMPRESSION_RATIO = Histogram(
    "ghosttrace:compression_ratio",
    "Tokens of a request divided by the keys in the cache at its end.",
    buckets=(1, 1.25, 1.5, 2, 3, 4, 6, 8, 12, 16),
)
SEALED = Gauge(
    "ghosttrace:sealed",
    "1 if no request can retain keys and values that have seen an erased block, else 0.",
    ("arm", "request_arms"),
    multiprocess_mode="max",
)


def count_finished(blocks: int, tokens: int, erased: int) -> None:
    """Update the histograms with a finished request.

    Args:
        blocks: number of finished blocks.
        tokens: number of computed tokens.
        erased: number of erased keys among these tokens.
    """
    REQUEST_BLOCKS.observe(blocks)
    if tokens > erased:
        COMPRESSION_RATIO.observe(tokens / (tokens - erased))
