"""vLLM's worker, whose model runner erases: `worker_cls="ghosttrace.serving.vllm.worker.ErasingWorker"`."""

from typing import TYPE_CHECKING, Any

from vllm.platforms import current_platform

from ghosttrace.serving.vllm.runner import ErasingRunner
from ghosttrace.serving.vllm.runner_v2 import ErasingRunnerV2

if TYPE_CHECKING or not current_platform.is_cpu():
    from vllm.v1.worker.gpu_worker import Worker
else:
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker


class ErasingWorker(Worker):
    """The platform's own worker. Its runner erases from when it is made: vLLM has no option for its class."""

    def init_device(self) -> None:
        """Make the runner, and have it erase."""
        super().init_device()
        runner: Any = self.model_runner
        kind, erasing = type(runner), ErasingRunnerV2 if self.use_v2_model_runner else ErasingRunner
        runner.__class__ = type(f"Erasing{kind.__name__}", (erasing, kind), {})
