"""The pipeline on a Ray cluster: workers send the requests and compute, and this process decides and keeps the answers.

So that no answer is lost with a worker, it is stored here, in the folder of the build, before it is used. The limits of
requests at once and of the cost are held here as well, for all workers together.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from socket import gethostname
from typing import Any

from ghosttrace.cluster.connect import Machine
from ghosttrace.cluster.workers import Workers
from ghosttrace.pipeline.endpoint import Endpoint
from ghosttrace.pipeline.rows import Row
from ghosttrace.pipeline.stages import Settings, Work, computed_stages
from ghosttrace.pipeline.transport import Failure, Reply, Transport


class PipelineWorker:
    """Actor that sends requests and computes.

    Args:
        endpoint: the endpoint.
        settings: settings of all stages.
        seal_check: name of a model that measures what mementos leave out; None for a worker that does not measure.
    """

    def __init__(self, endpoint: Endpoint, settings: Settings, seal_check: str | None) -> None:
        self._endpoint, self._settings, self._seal_check = endpoint, settings, seal_check

    async def open(self) -> None:
        """Open the connections, and load tokenizer and model.

        Raises:
            UserError: the endpoint has no valid address, or this machine lacks the tokenizer or the model.
        """
        self._transport = Transport(self._endpoint)
        await asyncio.to_thread(getattr, self._settings, "count_tokens")
        leak_check = None
        if self._seal_check is not None:
            from ghosttrace.pipeline.leak_check import LeakCheck  # imported here because only it needs a model

            leak_check = await asyncio.to_thread(LeakCheck.load, self._seal_check)
        self._stages = computed_stages(self._settings, leak_check)

    async def send(self, request: Mapping[str, Any]) -> Reply | Failure:
        """Send a request; a failure names this machine."""
        reply = await self._transport.send(request)
        return replace(reply, reason=f"{reply.reason}, from {gethostname()}") if isinstance(reply, Failure) else reply

    async def compute(self, name: str, row: Row) -> Row:
        """Run a stage that only computes."""
        return await asyncio.to_thread(self._stages[name], row)


@asynccontextmanager
async def cluster_work(
    machines: Sequence[Machine], endpoint: Endpoint, settings: Settings, seal_check: str | None
) -> AsyncIterator[Work]:
    """Start the workers of a build: one for each CPU, and at most one for each request at once.

    With a model, further workers hold it: one for each GPU, or one on each machine if there are no GPUs.

    Args:
        machines: the machines of the cluster.
        endpoint: the endpoint.
        settings: settings of all stages.
        seal_check: name of a model that measures what each memento leaves out.

    Raises:
        UserError: a worker cannot be started, for example because it cannot see the model.
    """
    settings = replace(settings)  # without the tokenizer that this process has loaded
    async with AsyncExitStack() as stack:
        places = _spread([(machine, machine.cpus) for machine in machines])[: endpoint.concurrency]
        workers = await stack.enter_async_context(Workers(PipelineWorker, (endpoint, settings, None), places))
        measurers = workers
        if seal_check is not None:
            with_gpu = _spread([(machine, machine.gpus) for machine in machines])
            arguments = (endpoint, settings, seal_check)
            models = Workers(PipelineWorker, arguments, with_gpu or list(dict.fromkeys(places)), gpus=bool(with_gpu))
            measurers = await stack.enter_async_context(models)

        async def compute(name: str, row: Row) -> Row:
            result: Row = await (measurers if name == "measure" else workers).run("compute", name, row)
            return result

        async def send(request: Mapping[str, Any]) -> Reply | Failure:
            reply: Reply | Failure = await workers.run("send", request)
            return reply

        yield Work(compute, measures=seal_check is not None, send=send)


def _spread(numbers: Sequence[tuple[Machine, int]]) -> list[Machine]:
    """Return each machine so often as its number says, one of each first."""
    rounds = range(max(number for _, number in numbers))
    return [machine for turn in rounds for machine, number in numbers if turn < number]
