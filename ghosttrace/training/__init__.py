"""Supervised fine-tuning with memento attention: examples, packing, stages, and adding delimiters to a model."""
