"""Block erasure in servers: what both share is here, vLLM is in `vllm/`, the small server without vLLM in `http/`."""
