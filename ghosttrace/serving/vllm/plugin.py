"""vLLM's entry point `vllm.general_plugins`: the reasoning parsers, known in every process by their names."""


def register() -> None:
    """Called by vLLM when it starts."""
    from vllm.reasoning import ReasoningParserManager

    for name, kind in (("ghosttrace-mementos", "Mementos"), ("ghosttrace-blocks", "Blocks")):
        ReasoningParserManager.register_lazy_module(name, "ghosttrace.serving.vllm.reasoning", kind)
