"""The queue of the small server: requests wait, and one thread decodes them, a batch at a time.

There is no continuous batching. A batch is made of waiting requests with equal settings and sampling, and it is decoded
to its end before the next batch begins.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ghosttrace.ablation.arms import ARMS
from ghosttrace.law.expiry import ExpiryTracker
from ghosttrace.model.checkpoint import Checkpoint
from ghosttrace.model.generate import Generation, Request, generate, stop_ids
from ghosttrace.model.sampling import Sampling
from ghosttrace.serving.settings import ServingSettings

JobEvent = int | Generation | Exception
"""Sent to the client of a job: each token, then the full generation or the error."""


@dataclass(eq=False)
class Job:
    """One response to decode.

    Attributes:
        request: the prompt, and the key of its sampling noise.
        settings: the law, with the request's overrides applied.
        sampling: how tokens are chosen.
        send: called by the decoding thread with every event.
        cancelled: set when the client has disconnected; the response then ends at its next token.
    """

    request: Request
    settings: ServingSettings
    sampling: Sampling
    send: Callable[[JobEvent], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class QueueFullError(Exception):
    """The queue has no room for a request's jobs."""


class JobQueue:
    """Waiting jobs, in order of arrival.

    Args:
        batch_size: most jobs in a batch.
        capacity: most jobs that may wait.
    """

    def __init__(self, batch_size: int, capacity: int) -> None:
        self._batch_size, self._capacity = batch_size, capacity
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()

    def put(self, jobs: Sequence[Job]) -> None:
        """Add all of these jobs.

        Raises:
            QueueFullError: there is no room for all of them.
        """
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.cancelled.is_set())
            if len(self._waiting) + len(jobs) > self._capacity:
                raise QueueFullError
            self._waiting.extend(jobs)
            self._changed.notify()

    def take(self) -> list[Job]:
        """Wait for jobs and return a batch: the first job, and later ones with equal settings and sampling."""
        with self._changed:
            batch: list[Job] = []
            while not batch:
                self._changed.wait_for(lambda: self._waiting)
                live = [job for job in self._waiting if not job.cancelled.is_set()]
                alike = [job for job in live if (job.settings, job.sampling) == (live[0].settings, live[0].sampling)]
                batch = alike[: self._batch_size]
                self._waiting = deque(job for job in live if job not in batch)
            return batch


def decode(checkpoint: Checkpoint, batch: Sequence[Job]) -> None:
    """Decode a batch and send its events.

    Args:
        checkpoint: the model to decode with.
        batch: jobs with equal settings and sampling.
    """
    settings, sampling = batch[0].settings, batch[0].sampling
    arm = ARMS["full" if settings.policy.keep_last_n_blocks < 0 else settings.arm]()
    requests = [replace(job.request, harness=_end_when_cancelled(job, checkpoint)) for job in batch]
    generate(
        checkpoint.model,
        requests,
        checkpoint.markup,
        arm.adapt_policy(settings.policy),
        sampling,
        arm.eraser,
        on_token=lambda row, token: batch[row].send(token),
        on_done=lambda row, done: batch[row].send(done),
    )


def _end_when_cancelled(job: Job, checkpoint: Checkpoint) -> Callable[[ExpiryTracker], int | None]:
    """Return a harness that ends a cancelled response, if the model has a stop token."""
    stop = min(stop_ids(checkpoint.model), default=None)
    return lambda tracker: stop if job.cancelled.is_set() else None


def decode_forever(checkpoint: Checkpoint, queue: JobQueue) -> None:
    """Decode batch after batch; the decoding thread's main function."""
    while True:
        batch = queue.take()
        try:
            decode(checkpoint, batch)
        except Exception as error:  # the thread must survive a batch that fails; its clients get the error
            for job in batch:
                job.send(error)
