"""Workers on a Ray cluster: actors of one class. The work of one that dies is given to another."""

import asyncio
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ghosttrace.cluster.connect import Machine
from ghosttrace.errors import UserError

ATTEMPTS = 4
"""How often work is given out whose worker dies. More deaths end the run: which of the works under way on a worker has
killed it is not known, so that none may be left out for it."""
START_SECONDS = 600


@dataclass(eq=False)
class _Worker:
    machine: Machine
    actor: Any
    under_way: int = 0


def _own_methods(kind: type) -> type:
    """Return a class without the functions that a library has added to all objects, as nnsight adds `save`.

    Ray would take them for methods and send them to the workers, which would import that library first of all.
    """
    added = {name: None for name, _ in inspect.getmembers(object, inspect.isfunction)}
    return type(kind.__name__, (kind,), added) if added else kind


class Workers:
    """Actors of one class; an asynchronous context manager that starts and ends them.

    A worker that dies is replaced, on its own machine or, if that is gone, on another.

    Args:
        kind: the class. Its coroutine `open` prepares a worker, and its other coroutines do the work.
        arguments: arguments of its constructor.
        machines: the machine of each worker.
        gpus: number of GPUs that each worker holds.
    """

    def __init__(self, kind: type, arguments: Sequence[Any], machines: Sequence[Machine], gpus: int = 0) -> None:
        # Ray places an actor without any share of a CPU on another machine than the one it is asked for.
        self._kind = ray.remote(num_cpus=0.01, num_gpus=gpus)(_own_methods(kind))
        self._arguments = arguments
        self._machines = machines
        self._ready: list[_Worker] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._failure: BaseException = UserError("no worker was asked for")

    async def __aenter__(self) -> Self:
        """Start the workers.

        Raises:
            UserError: a worker could not be started.
        """
        for machine in self._machines:
            self._begin(machine)
        try:
            await asyncio.gather(*tuple(self._starting))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        starting = tuple(self._starting)
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        for worker in self._ready:
            ray.kill(worker.actor)

    async def run(self, method: str, *arguments: Any) -> Any:
        """Return the result of a method of the worker with the least work.

        Raises:
            UserError: the same work lost its worker each time, or no worker is left and none can be started.
            Exception: whatever the method raises.
        """
        last: RayError | None = None
        lost: list[Machine] = []  # a machine that is gone has more workers than one
        for _ in range(ATTEMPTS):
            worker = await self._least_busy(lost)
            worker.under_way += 1
            try:
                return await getattr(worker.actor, method).remote(*arguments)
            except RayTaskError as error:
                raise error.cause from error
            except RayError as error:
                last = error
                lost.append(worker.machine)
                self._replace(worker)
            finally:
                worker.under_way -= 1
        raise UserError(
            f"the same work has lost its worker {ATTEMPTS} times: look at Ray's logs for the reason, such as too "
            "little memory, and run the command again"
        ) from last

    async def _least_busy(self, lost: Sequence[Machine]) -> _Worker:
        """Return the ready worker with the least work, if possible on a machine that has not lost this work yet."""
        while not self._ready:
            if not self._starting:
                raise self._failure
            await asyncio.wait(tuple(self._starting), return_when=asyncio.FIRST_COMPLETED)
        return min(self._ready, key=lambda worker: (worker.machine in lost, worker.under_way))

    def _replace(self, worker: _Worker) -> None:
        if worker in self._ready:  # the first of its works to fail
            self._ready.remove(worker)
            ray.kill(worker.actor)  # it may be alive, and only out of reach
            self._begin(worker.machine)

    def _begin(self, machine: Machine) -> None:
        task = asyncio.create_task(self._start(machine))
        self._starting.add(task)
        task.add_done_callback(self._end_start)

    def _end_start(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._failure = error

    async def _start(self, machine: Machine) -> None:
        """Start a worker, on another machine only if its own is gone."""
        place = NodeAffinitySchedulingStrategy(machine.node_id, soft=True)
        actor = self._kind.options(scheduling_strategy=place).remote(*self._arguments)
        try:
            async with asyncio.timeout(START_SECONDS):
                await actor.open.remote()
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(f"on the machine {machine.address} of the Ray cluster, {error.cause}") from error
            raise error.cause from error
        except (RayError, TimeoutError) as error:
            reason = str(error).strip().rpartition("\n")[2] or f"none within {START_SECONDS} seconds"
            raise UserError(
                f"no worker can be started on the machine {machine.address} of the Ray cluster ({reason}): look at "
                "`ray status` and at Ray's logs there"
            ) from error
        self._ready.append(_Worker(machine, actor))
