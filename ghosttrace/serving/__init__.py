"""Servers with block erasure: shared code, vLLM integration (`vllm/`), and a small server without vLLM (`http/`)."""
