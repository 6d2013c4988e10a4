"""Queue of the small server, and the thread that decodes its jobs batch by batch.

There is no continuous batching. A batch consists of queued jobs with equal settings and sampling, and it is decoded
completely before the next batch begins.
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
"""Event of a job: each token id, then the full generation or the error."""


@dataclass(eq=False)
class Job:
    """Decoding of one response.

    Attributes:
        request: the prompt, and the key of its random stream.
        settings: erasure settings with the overrides of the request.
        sampling: temperature, filters and maximum length.
        send: function that the decoding thread calls with every event.
        cancelled: set when the client has disconnected; the response then ends at its next token.
    """

    request: Request
    settings: ServingSettings
    sampling: Sampling
    send: Callable[[JobEvent], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class QueueFullError(Exception):
    """Error raised when the queue has no room for all jobs of a request."""


class JobQueue:
    """Thread-safe queue of jobs in order of arrival.

    Args:
        batch_size: maximum number of jobs in a batch.
        capacity: maximum number of jobs in the queue.
    """

    def __init__(self, batch_size: int, capacity: int) -> None:
        self._batch_size, self._capacity = batch_size, capacity
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()

    def put(self, jobs: Sequence[Job]) -> None:
        """Add all jobs or, if they do not fit, none.

        Raises:
            QueueFullError: if the queue has no room for all jobs.
        """
        with self._changed:
            self._waiting = deque(job for job in self._waiting if not job.cancelled.is_set())
            if len(self._waiting) + len(jobs) > self._capacity:
                raise QueueFullError
            self._waiting.extend(jobs)
            self._changed.notify()

    def take(self) -> list[Job]:
        """Wait for jobs and return a batch: the first job, and later jobs with equal settings and sampling."""
        with self._changed:
            batch: list[Job] = []
            while not batch:
                self._changed.wait_for(lambda: self._waiting)
                live = [job for job in self._waiting if not job.cancelled.is_set()]
                compatible = [
                    job for job in live if (job.settings, job.sampling) == (live[0].settings, live[0].sampling)
                ]
                batch = compatible[: self._batch_size]
                self._waiting = deque(job for job in live if job not in batch)
            return batch


def decode(checkpoint: Checkpoint, batch: Sequence[Job]) -> None:
    """Decode a batch and send the events of its jobs.

    Args:
        checkpoint: the model.
        batch: jobs with equal settings and sampling.
    """
    settings, sampling = batch[0].settings, batch[0].sampling
    keeps_all = settings.other_law is None and settings.policy.keep_last_n_blocks < 0
    arm = ARMS["full" if keeps_all else settings.arm]()
    requests = [replace(job.request, harness=_end_when_cancelled(job, checkpoint)) for job in batch]
    generate(
        checkpoint.model,
        requests,
        checkpoint.markup,
        settings.policy,
        sampling,
        arm.eraser,
        on_token=lambda row, token: batch[row].send(token),
        on_done=lambda row, generation: batch[row].send(generation),
        law=arm.adapt_law(settings.law),
    )


def _end_when_cancelled(job: Job, checkpoint: Checkpoint) -> Callable[[ExpiryTracker], int | None]:
    """Return a harness that forces a stop token when the job is cancelled, if the model has a stop token."""
    stop_id = min(stop_ids(checkpoint.model), default=None)
    return lambda tracker: stop_id if job.cancelled.is_set() else None


def decode_forever(checkpoint: Checkpoint, queue: JobQueue) -> None:
    """Decode batches from the queue forever; main function of the decoding thread."""
    while True:
        batch = queue.take()
        try:
            decode(checkpoint, batch)
        except Exception as error:  # the thread must survive a failed batch
            for job in batch:
                job.send(error)
