"""The small OpenAI-compatible server without vLLM: `ghosttrace serve --backend hf`."""
