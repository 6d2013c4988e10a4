"""vLLM plugin (entry point `vllm.general_plugins`) that registers the reasoning parsers in every process."""


def register() -> None:
    """Register the reasoning parsers; vLLM calls this function when it starts."""
    from vllm.reasoning import ReasoningParserManager

    for name, class_name in (("ghosttrace-mementos", "MementoParser"), ("ghosttrace-blocks", "BlockParser")):
        ReasoningParserManager.register_lazy_module(name, "ghosttrace.serving.vllm.reasoning_parsers", class_name)
