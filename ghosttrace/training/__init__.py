"""Fine-tuning on the law: examples, packing, stages, and the delimiters added to a model."""
