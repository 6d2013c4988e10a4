"""Training on the masked-attention law."""
