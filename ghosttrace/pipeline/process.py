"""Running of a stage over rows: many at once, results in order, failures set aside."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from ghosttrace.pipeline.rows import Row, RowError, SetAside

Result = TypeVar("Result")
Stage = Callable[[Row], Awaitable[Row]]


async def named(stage: str, work: Awaitable[Row]) -> Row:
    """Await the result of a stage, and write the stage's name into its error."""
    try:
        return await work
    except RowError as error:
        error.stage = error.stage or stage
        raise


async def process(rows: Iterable[Row | SetAside], stage: Stage, at_once: int) -> AsyncIterator[Row | SetAside]:
    """Yield the result of a stage for each row, in order.

    Args:
        rows: the rows; those that are set aside are passed on.
        stage: the work on one row.
        at_once: number of rows under way.
    """
    under_way: deque[asyncio.Task[Row | SetAside]] = deque()
    try:
        for row in rows:
            under_way.append(asyncio.create_task(_run(stage, row)))
            if len(under_way) >= at_once:
                yield await under_way.popleft()
        while under_way:
            yield await under_way.popleft()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def all_of(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Return the results of works that run at once; if one fails, cancel the others and raise its error."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _run(stage: Stage, row: Row | SetAside) -> Row | SetAside:
    if isinstance(row, SetAside):
        return row
    try:
        return await stage(row)
    except RowError as error:
        return SetAside(row.task_id, error.stage, str(error))
