"""The queue of a small server: who asked waits, and one thread decodes, a batch at a time.

There is no continuous batching: a batch is made of requests that wait and ask for the same law and sampling, and it
is decoded to its end before the next one begins.
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
from ghosttrace.serving.settings import Settings

Heard = int | Generation | Exception
"""What one who waits hears: each token, and at the end the whole response, or what went wrong."""


@dataclass(eq=False)
class Job:
    """One response that somebody waits for.

    Attributes:
        request: the prompt, and what its draws belong to.
        law, sampling: how it is written.
        hear: called by the decoding thread.
        gone: nobody waits any more; it ends at its next token.
    """

    request: Request
    law: Settings
    sampling: Sampling
    hear: Callable[[Heard], None]
    gone: threading.Event = field(default_factory=threading.Event)


class FullError(Exception):
    """As many requests wait as may."""


class Jobs:
    """Those that wait, in order.

    Args:
        rows: decoded together at most.
        room: that may wait at most.
    """

    def __init__(self, rows: int, room: int) -> None:
        self._rows, self._room = rows, room
        self._waiting: deque[Job] = deque()
        self._news = threading.Condition()

    def put(self, jobs: Sequence[Job]) -> None:
        """Take in all of these.

        Raises:
            FullError: there is no room for all.
        """
        with self._news:
            self._waiting = deque(job for job in self._waiting if not job.gone.is_set())
            if len(self._waiting) + len(jobs) > self._room:
                raise FullError
            self._waiting.extend(jobs)
            self._news.notify()

    def take(self) -> list[Job]:
        """The next batch, once there is one: the first that waits, and those behind it that ask for the same."""
        with self._news:
            batch: list[Job] = []
            while not batch:
                self._news.wait_for(lambda: self._waiting)
                here = [job for job in self._waiting if not job.gone.is_set()]
                alike = [job for job in here if (job.law, job.sampling) == (here[0].law, here[0].sampling)]
                batch = alike[: self._rows]
                self._waiting = deque(job for job in here if job not in batch)
            return batch


def decode(checkpoint: Checkpoint, batch: Sequence[Job]) -> None:
    """Write a batch, and tell those who wait.

    Args:
        checkpoint: whose model writes.
        batch: jobs of one law and one sampling.
    """
    law, sampling = batch[0].law, batch[0].sampling
    arm = ARMS["full" if law.policy.keep_last_n_blocks < 0 else law.arm]()
    requests = [replace(job.request, harness=_ends(job, checkpoint)) for job in batch]
    generate(
        checkpoint.model,
        requests,
        checkpoint.markup,
        arm.law(law.policy),
        sampling,
        arm.eraser,
        on_token=lambda number, token: batch[number].hear(token),
        on_done=lambda number, done: batch[number].hear(done),
    )


def _ends(job: Job, checkpoint: Checkpoint) -> Callable[[ExpiryTracker], int | None]:
    """Ends a response that nobody waits for, where the model has a token for that."""
    stop = min(stop_ids(checkpoint.model), default=None)
    return lambda tracker: stop if job.gone.is_set() else None


def work(checkpoint: Checkpoint, jobs: Jobs) -> None:
    """Decode batch after batch, for good."""
    while True:
        batch = jobs.take()
        try:
            decode(checkpoint, batch)
        except Exception as error:  # the thread must outlive a batch; those who wait are told
            for job in batch:
                job.hear(error)
