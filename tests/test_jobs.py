"""The queue of the small server, and what its thread decodes."""

import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ghosttrace as gt
from ghosttrace.ablation.arms import ARMS
from ghosttrace.model.generate import Generation, Request
from ghosttrace.model.sampling import Sampling
from ghosttrace.serving.http.jobs import Job, JobEvent, JobQueue, QueueFullError, decode, decode_forever
from ghosttrace.serving.settings import ServingSettings

CHECKPOINT = gt.load("toy-mixed")
SETTINGS = ServingSettings(CHECKPOINT.markup, CHECKPOINT.policy)
GREEDY = Sampling(160, temperature=0)


def job(
    message: str = "x042", settings: ServingSettings = SETTINGS, sampling: Sampling = GREEDY
) -> tuple[Job, list[JobEvent]]:
    """A job, and the list of events that it sends."""
    events: list[JobEvent] = []
    return Job(Request(CHECKPOINT.prompt_ids(message)), settings, sampling, events.append), events


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=20), st.integers(1, 4))
def test_batches_are_in_order_and_of_one_kind(kinds: list[tuple[int, bool]], rows: int) -> None:
    """Every job is decoded once, except those that were cancelled."""
    waiting = [job(sampling=Sampling(length))[0] for length, _ in kinds]
    for one, (_, gone) in zip(waiting, kinds, strict=True):
        if gone:
            one.cancelled.set()
    jobs = JobQueue(rows, capacity=20)
    jobs.put(waiting)
    left = [one for one in waiting if not one.cancelled.is_set()]
    while left:
        batch = jobs.take()
        assert batch == [one for one in left if one.sampling == left[0].sampling][:rows]
        left = [one for one in left if one not in batch]


def test_the_queue_has_a_capacity() -> None:
    jobs = JobQueue(batch_size=1, capacity=2)
    jobs.put([job()[0]])
    with pytest.raises(QueueFullError):
        jobs.put([job()[0], job()[0]])
    jobs.put([job()[0]])


def test_a_cancelled_job_ends_and_the_others_go_on() -> None:
    (one, events), (other, other_events) = job("x042"), job("x042")

    def cancel(event: JobEvent) -> None:
        events.append(event)
        if len(events) == 5:
            one.cancelled.set()

    one.send = cancel
    decode(CHECKPOINT, [one, other])
    (expected,) = gt.generate(CHECKPOINT.model, [other.request], CHECKPOINT.markup, CHECKPOINT.policy, GREEDY)
    assert events[:5] == expected.tokens[:5] and len(events) == 7 and isinstance(events[-1], Generation)
    assert other_events[:-1] == expected.tokens and len(expected.tokens) > 20


@pytest.mark.parametrize("arm", ["memento", "full", "placebo", "restart", "restart-renumbered"])
def test_arms(arm: str) -> None:
    one, events = job(settings=replace(SETTINGS, arm=arm))
    decode(CHECKPOINT, [one])
    known = ARMS[arm]()
    law, requests = known.adapt_policy(CHECKPOINT.policy), [one.request]
    (expected,) = gt.generate(CHECKPOINT.model, requests, CHECKPOINT.markup, law, GREEDY, known.eraser)
    assert events[:-1] == expected.tokens
    assert isinstance(events[-1], Generation) and (events[-1].kv_tokens == expected.kv_tokens).all()


def test_a_law_that_never_erases_is_full_attention() -> None:
    one, events = job(settings=replace(SETTINGS, policy=replace(SETTINGS.policy, keep_last_n_blocks=-1)))
    decode(CHECKPOINT, [one])
    assert isinstance(events[-1], Generation) and events[-1].kv_tokens[-1] == len(events[-1].kv_tokens)


def test_a_batch_that_fails_sends_the_error_and_the_next_is_decoded() -> None:
    """The thread outlives it."""
    bad, good = job()[0], job()[0]
    done = {bad: threading.Event(), good: threading.Event()}
    said: dict[Job, list[JobEvent]] = {bad: [], good: []}
    for one in (bad, good):

        def send(what: JobEvent, one: Job = one) -> None:
            said[one].append(what)
            if not isinstance(what, int):
                done[one].set()

        one.send = send
    bad.request = replace(bad.request, prompt=[10**6])  # no such token
    jobs = JobQueue(batch_size=1, capacity=2)
    jobs.put([bad, good])
    threading.Thread(target=decode_forever, args=(CHECKPOINT, jobs), daemon=True).start()
    assert done[bad].wait(60) and done[good].wait(60)
    assert isinstance(said[bad][-1], Exception) and isinstance(said[good][-1], Generation)
