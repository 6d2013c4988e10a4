"""vLLM's entry point `vllm.general_plugins`: registers the reasoning parsers by name in every process."""


def register() -> None:
    """Register the parsers; vLLM calls this when it starts."""
    from vllm.reasoning import ReasoningParserManager

    for name, kind in (("ghosttrace-mementos", "MementoParser"), ("ghosttrace-blocks", "BlockParser")):
        ReasoningParserManager.register_lazy_module(name, "ghosttrace.serving.vllm.reasoning_parsers", kind)
