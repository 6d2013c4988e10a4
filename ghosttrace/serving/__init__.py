"""Serving by the law: block erasure inside stock vLLM, and a small server without it."""

from ghosttrace.serving.vllm.engine import engine

__all__ = ["engine"]
