"""Block erasure inside vLLM: its scheduler, workers and logits processor, and the arguments and commands that set them."""
