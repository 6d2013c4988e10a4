"""Averages that arXiv 2604.09852 publishes, on which a plan rests until they are replaced."""

ASSUMED_ACCURACY = 0.661
"""Pass@1 of Qwen3-8B on AIME24."""
MEAN_RESPONSE_TOKENS, MEAN_BLOCK_TOKENS, MEAN_MEMENTO_TOKENS = 12_750, 1_150, 194
"""Tokens per response, per block and per memento."""
