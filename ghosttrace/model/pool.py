"""Workers on a Ray cluster that each hold the same checkpoint, and functions mapped over units of work.

A function is sent to the workers without the model and the tokenizer that it refers to: each worker puts in its own.
Whatever it computes from a unit, it would have computed here, given the same number of threads.
"""

import asyncio
import io
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ghosttrace.cluster.connect import Machine, connected
from ghosttrace.errors import UserError
from ghosttrace.law.expiry import Policy
from ghosttrace.law.law import Law
from ghosttrace.law.markup import Markup
from ghosttrace.model.checkpoint import Checkpoint, fingerprint, load_tokenizer, load_weights

if TYPE_CHECKING:
    from ghosttrace.cluster.workers import Workers

Unit = TypeVar("Unit")
Result = TypeVar("Result")

UNITS_AT_ONCE = 2
"""Units that a worker is given at once: one to work on, and the next."""


@dataclass(frozen=True)
class CheckpointSource:
    """What a worker needs to load the checkpoint of this process.

    Attributes:
        name: bundled name, folder or hub id.
        dtype: data type of the weights, such as `float32`.
        fingerprint: hashes of weights and vocabulary, see `ghosttrace.model.checkpoint.fingerprint`.
        markup, policy, stages, other_law: as in `Checkpoint`.
    """

    name: str
    dtype: str
    fingerprint: Mapping[str, str]
    markup: Markup
    policy: Policy
    stages: tuple[str, ...]
    other_law: Law | None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "CheckpointSource":
        """Describe a loaded checkpoint."""
        dtype = str(checkpoint.model.dtype).removeprefix("torch.")
        kept = (checkpoint.markup, checkpoint.policy, checkpoint.stages, checkpoint.other_law)
        return cls(checkpoint.name, dtype, fingerprint(checkpoint), *kept)

    def load(self, device: str) -> Checkpoint:
        """Load the checkpoint.

        Raises:
            UserError: this machine has no such model, or one with other weights.
        """
        try:
            tokenizer, model = load_tokenizer(self.name), load_weights(self.name, device, self.dtype)
        except UserError as error:
            raise UserError(f"{error}; every machine must see the model under the same name") from error
        loaded = Checkpoint(self.name, model, tokenizer, self.markup, self.policy, self.stages, self.other_law)
        if fingerprint(loaded) != self.fingerprint:
            raise UserError(
                f"{self.name} has other weights or another vocabulary than on the machine that started the run: put "
                "the same files on all machines"
            )
        return loaded


class ModelWorker:
    """Actor that holds a checkpoint and calls functions with it, one at a time.

    Args:
        source: the checkpoint to load.
        device: device of the model.
        threads: for each machine, by its name in Ray, the number of CPU threads of a worker.
    """

    def __init__(self, source: CheckpointSource, device: str, threads: Mapping[str, int]) -> None:
        import ray

        self._source, self._device = source, device
        number = threads.get(ray.get_runtime_context().get_node_id(), 1)
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(number,))
        self._functions: dict[int, Callable[[Any], Any]] = {}

    async def open(self) -> None:
        """Load the checkpoint.

        Raises:
            UserError: this machine has no such model, or one with other weights.
        """
        loop = asyncio.get_running_loop()
        self._checkpoint = await loop.run_in_executor(self._thread, self._source.load, self._device)

    async def call(self, number: int, function: bytes, references: Sequence[Any], unit: Any) -> Any:
        """Return the result of a function for a unit of work; the items of a generator as a list.

        Args:
            number: number of the function; the worker keeps the last one.
            function: the function, as `pickle_without_model` returns it.
            references: the references in it.
            unit: its argument.
        """
        if number not in self._functions:
            self._functions = {number: unpickle_with_model(function, self._checkpoint, references)}
        called = partial(_all_items, self._functions[number], unit)
        return await asyncio.get_running_loop().run_in_executor(self._thread, called)


def _all_items(function: Callable[[Any], Any], unit: Any) -> Any:
    result = function(unit)
    return list(result) if isinstance(result, Iterator) else result


def pickle_without_model(function: Any, checkpoint: Checkpoint) -> tuple[bytes, list[Any]]:
    """Return an object as bytes that leave out the model and the tokenizer of a checkpoint.

    Returns:
        The bytes, and Ray's references in the object, which Ray must see on their way to a worker.
    """
    import ray

    left_out = {id(checkpoint.model): "model", id(checkpoint.tokenizer): "tokenizer"}
    references: list[Any] = []

    class Pickler(ray.cloudpickle.CloudPickler):  # type: ignore[misc]
        def persistent_id(self, obj: Any) -> str | int | None:
            if isinstance(obj, ray.ObjectRef):
                references.append(obj)
                return len(references) - 1
            return left_out.get(id(obj))

    buffer = io.BytesIO()
    Pickler(buffer).dump(function)
    return buffer.getvalue(), references


def unpickle_with_model(data: bytes, checkpoint: Checkpoint, references: Sequence[Any]) -> Any:
    """Return the object that `pickle_without_model` has pickled, with the model and tokenizer of a checkpoint."""

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, identifier: str | int) -> Any:
            return references[identifier] if isinstance(identifier, int) else getattr(checkpoint, identifier)

    return Unpickler(io.BytesIO(data)).load()


def map_units(
    function: Callable[[Unit], Result], units: Sequence[Unit], pool: "ModelPool | None"
) -> Iterator[tuple[int, Result]]:
    """Yield the number of each unit of work with the function's result for it.

    Without a pool, the units are worked on here in turn, and an iterator that the function returns is read by whoever
    receives it, item by item.
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
            UserError: no worker is left and none can be started.
            Exception: whatever the function raises.
        """
        import ray

        data, references = pickle_without_model(function, self._checkpoint)
        stored, number = ray.put(data), next(self._numbers)
        finished: SimpleQueue[tuple[int, Result] | None] = SimpleQueue()

        async def run() -> None:
            free = asyncio.Semaphore(UNITS_AT_ONCE * self.size)

            async def run_unit(index: int) -> None:
                async with free:
                    result = await self._workers.run("call", number, stored, references, units[index])
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
            try:
                yield ModelPool(checkpoint, started, len(places), loop)
            finally:
                asyncio.run_coroutine_threadsafe(started.__aexit__(), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


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
