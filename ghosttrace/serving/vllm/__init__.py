"""Block erasure inside vLLM: scheduler, workers, logits processor, and the arguments and command that set them."""
