"""Inspect (`inspect_ai`): the benchmarks as a task, and checkpoints under a law and an arm as a model provider.

`registry` is what Inspect loads through the entry point `ghosttrace`; it imports no model. `provider` and `benchmark`
do the work.
"""
