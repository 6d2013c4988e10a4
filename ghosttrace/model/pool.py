"""Workers on a Ray cluster that each hold the same checkpoint, and functions mapped over units of work.

A function is sent to the workers without the model and the tokenizer that it refers to: each worker puts in its own.
Whatever it computes from a unit, it would have computed here, given the same number of threads.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from ghosttrace.cluster.connect import Machine, connected
from ghosttrace.errors import UserError
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.pool_worker import CheckpointSource, ModelWorker, pickle_without_model

if TYPE_CHECKING:
    from ghosttrace.cluster.workers import Workers

Unit = TypeVar("Unit")
Result = TypeVar("Result")

UNITS_AT_ONCE = 2
"""Units that a worker is given at once: one to work on, and the next."""


def map_units(
    function: Callable[[Unit], Result], units: Sequence[Unit], pool: "ModelPool | None"
) -> Iterator[tuple[int, Result]]:
    """Yield the number of each unit of work with the function's result for it.

    Without a pool, this process works on the units in turn. If the function returns an iterator, its items are then
    computed when the caller reads them.
    """
    yield from enumerate(map(function, units)) if pool is None else pool.map(function, units)


class ModelPool:
    """Workers with the same checkpoint, ready to work.

    Args:
        checkpoint: the checkpoint of this process.
        workers: the started workers.
        size: their number.
        loop: event loop that runs in another thread, so that a notebook, which has one of its own, can use the pool.
    """

    def __init__(self, checkpoint: Checkpoint, workers: "Workers", size: int, loop: asyncio.AbstractEventLoop) -> None:
        self.size = size
        self._checkpoint, self._workers, self._loop = checkpoint, workers, loop
        self._numbers = count()

    def map(self, function: Callable[[Unit], Result], units: Sequence[Unit]) -> Iterator[tuple[int, Result]]:
        """Yield the number of each unit with the function's result for it, in the order in which they are finished.

        The unit of a worker that dies is given to another.

        Args:
            function: the function. It may refer to the model and the tokenizer of the checkpoint. The items of an
                iterator that it returns come as a list.
            units: its arguments.

        Raises:
            UserError: no worker is left and none can be started, or the function or a unit cannot be sent to workers.
            Exception: whatever the function raises.
        """
        import ray

        data, references = pickle_without_model(function, self._checkpoint)
        stored, number = ray.put(data), next(self._numbers)
        finished: SimpleQueue[tuple[int, Result] | None] = SimpleQueue()

        async def run() -> None:
            free = asyncio.Semaphore(UNITS_AT_ONCE * self.size)

            async def run_unit(index: int) -> None:
                sent = pickle_without_model(units[index], self._checkpoint)
                async with free:
                    result = await self._workers.run("call", number, (stored, references), sent)
                finished.put((index, result))

            async with asyncio.TaskGroup() as group:
                for index in range(len(units)):
                    group.create_task(run_unit(index))

        running = asyncio.run_coroutine_threadsafe(run(), self._loop)
        running.add_done_callback(lambda _: finished.put(None))
        try:
            while (item := finished.get()) is not None:
                yield item
            running.result()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
        finally:
            running.cancel()


@contextmanager
def model_pool(
    checkpoint: Checkpoint,
    address: str,
    workers: int | None = None,
    gpus_per_worker: int = 1,
    device: str | None = None,
) -> Iterator[ModelPool]:
    """Start workers on a Ray cluster that each hold a checkpoint, and end them.

    Args:
        checkpoint: a checkpoint that every machine can load by its name.
        address: see `ghosttrace.cluster.connect.connected`.
        workers: number of workers; by default one for each `gpus_per_worker` GPUs, or one for each CPU of a cluster
            without GPUs. The CPUs of a machine are divided among its workers.
        gpus_per_worker: number of GPUs that a worker holds, on a cluster with GPUs.
        device: device of the model; by default a GPU on a cluster with GPUs, else the CPU.

    Raises:
        UserError: the cluster cannot be used, or a worker cannot be started on it.
    """
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, not {workers}")
    with connected(address) as machines:
        from ghosttrace.cluster.workers import Workers  # imported here because it needs Ray

        places, gpus = place_workers(machines, workers, gpus_per_worker)
        shares = Counter(machine.node_id for machine in places)
        threads = {machine.node_id: max(1, machine.cpus // shares[machine.node_id]) for machine in places}
        arguments = (CheckpointSource.of(checkpoint), device or ("cuda" if gpus else "cpu"), threads)
        started = Workers(ModelWorker, arguments, places, gpus)
        loop = asyncio.new_event_loop()
        thread = Thread(target=loop.run_forever, daemon=True)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(started.__aenter__(), loop).result()
            yield ModelPool(checkpoint, started, len(places), loop)
        finally:
            asyncio.run_coroutine_threadsafe(_end(started), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _end(workers: "Workers") -> None:
    """End whatever waits for the workers, such as a map whose results nobody reads any more, and then the workers."""
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await workers.__aexit__()


def maybe_pool(
    checkpoint: Checkpoint, ray: str | None, workers: int | None, **options: Any
) -> AbstractContextManager[ModelPool | None]:
    """Return the context manager `model_pool`, or one that yields None if there is no address.

    Raises:
        UserError: a number of workers is given without a cluster.
    """
    if ray is None:
        if workers is not None:
            raise UserError("--workers needs --ray: add --ray local for workers on this machine")
        return nullcontext()
    return model_pool(checkpoint, ray, workers, **options)


def place_workers(machines: Sequence[Machine], workers: int | None, gpus_per_worker: int) -> tuple[list[Machine], int]:
    """Return the machine of each worker, one on each machine first, and the number of GPUs that each worker holds.

    Raises:
        UserError: more workers are asked for than there is room for.
    """
    with_gpus = any(machine.gpus for machine in machines)
    room = {machine: machine.gpus // gpus_per_worker if with_gpus else machine.cpus for machine in machines}
    rounds = range(max(room.values()))
    places = [machine for turn in rounds for machine, number in room.items() if turn < number]
    if not places or (workers is not None and workers > len(places)):
        kind = f"{gpus_per_worker} GPU(s) on one machine" if with_gpus else "one CPU"
        raise UserError(
            f"the Ray cluster has room for {len(places)} workers with {kind} each"
            + ("" if workers is None else f", and --workers asks for {workers}")
            + ": ask for fewer, or add machines with `ray start`"
        )
    return places[:workers], gpus_per_worker if with_gpus else 0
