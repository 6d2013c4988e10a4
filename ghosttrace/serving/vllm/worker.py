"""vLLM worker with an erasing model runner: `worker_cls="ghosttrace.serving.vllm.worker.ErasingWorker"`."""

from typing import TYPE_CHECKING, Any

from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform

from ghosttrace.serving.vllm import private_api_check
from ghosttrace.serving.vllm.processes import end_with_parent

if TYPE_CHECKING or not current_platform.is_cpu():
    from vllm.v1.worker.gpu_worker import Worker
else:
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker


class ErasingWorker(Worker):
    """Worker of the platform with a model runner that erases blocks."""

    def init_device(self) -> None:
        """Initialise the device and the model runner."""
        private_api_check.check_component("worker")
        end_with_parent()
        super().init_device()
        if current_platform.is_cpu():  # vLLM's CPU worker does not call `_make_model_runner`
            self.model_runner = self._make_model_runner()

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """Load new weights as vLLM does, and let a head that is tied to the embeddings follow them.

        On a CPU the head computes with a packed copy of its weights. vLLM packs again what it has loaded, and the
        weights of a tied head are not loaded, so that it would keep the former ones.
        """
        private_api_check.check_component("reload")
        super().reload_weights(*args, **kwargs)
        head = getattr(self.model_runner.get_model(), "lm_head", None)
        if current_platform.is_cpu() and isinstance(head, ParallelLMHead):
            head.quant_method.process_weights_after_loading(head)

    def _make_model_runner(self) -> Any:
        model_runner_class = runner_class(self.use_v2_model_runner, current_platform.is_cpu())
        return model_runner_class(self.vllm_config, self.device)


def runner_class(v2: bool, cpu: bool) -> Any:
    """Return the platform's model runner with erasure mixed in.

    Args:
        v2: whether vLLM uses its V2 model runner.
        cpu: whether the platform is a CPU.
    """
    if v2:
        private_api_check.check_component("runner_v2")
        from ghosttrace.serving.vllm.runner_v2 import ErasingRunnerMixinV2

        if cpu:
            from vllm.v1.worker.cpu.model_runner import CPUModelRunner as RunnerV2
        else:
            from vllm.v1.worker.gpu.model_runner import GPUModelRunner as RunnerV2
        return type("ErasingModelRunnerV2", (ErasingRunnerMixinV2, RunnerV2), {})
    private_api_check.check_component("runner")
    from ghosttrace.serving.vllm.runner_v1 import ErasingRunnerMixinV1

    if cpu:
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner as Runner
    else:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner as Runner
    return type("ErasingModelRunner", (ErasingRunnerMixinV1, Runner), {})
