"""Checkpoints and everything that runs them: prompts, attention under expiry, KV caches, decoding, cached states."""
