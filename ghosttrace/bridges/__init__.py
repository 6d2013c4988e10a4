"""Bridges to TransformerLens and nnsight (`expiry` as a forward argument, cached states from hooks) and to Inspect."""
