"""The annotation pipeline: from raw chains of thought to training rows with blocks and mementos."""
