"""Small OpenAI-compatible server without vLLM: `ghosttrace serve --backend hf`."""
