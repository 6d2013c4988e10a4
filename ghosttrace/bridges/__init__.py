"""TransformerLens and nnsight under the law: `expiry` as an argument, and the cached states from their own hooks."""
