"""Bridges to TransformerLens and nnsight: `expiry` as a forward argument, and cached states from their hooks."""
