"""A checkpoint and everything that runs it: prompts, attention under the law, caches, decoding, cached states."""
