"""Block erasure in vLLM: scheduler, workers and logits processor, and the arguments that enable them."""
