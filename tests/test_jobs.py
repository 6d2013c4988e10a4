"""The job queue of the small server, and its decoding thread."""

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
    """Return a job and the list that receives its events."""
    events: list[JobEvent] = []
    return Job(Request(CHECKPOINT.prompt_ids(message)), settings, sampling, events.append), events


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=20), st.integers(1, 4))
def test_batches_keep_order_and_share_settings(kinds: list[tuple[int, bool]], rows: int) -> None:
    """Every job is decoded once, except those that were cancelled."""
    waiting = [job(sampling=Sampling(length))[0] for length, _ in kinds]
    for queued, (_, is_cancelled) in zip(waiting, kinds, strict=True):
        if is_cancelled:
            queued.cancelled.set()
    jobs = JobQueue(rows, capacity=20)
    jobs.put(waiting)
    remaining = [queued for queued in waiting if not queued.cancelled.is_set()]
    while remaining:
        batch = jobs.take()
        assert batch == [queued for queued in remaining if queued.sampling == remaining[0].sampling][:rows]
        remaining = [queued for queued in remaining if queued not in batch]


def test_the_queue_has_a_capacity() -> None:
    jobs = JobQueue(batch_size=1, capacity=2)
    jobs.put([job()[0]])
    with pytest.raises(QueueFullError):
        jobs.put([job()[0], job()[0]])
    jobs.put([job()[0]])


def test_cancelled_job_ends_and_others_continue() -> None:
    (first, events), (second, second_events) = job("x042"), job("x042")

    def cancel(event: JobEvent) -> None:
        events.append(event)
        if len(events) == 5:
            first.cancelled.set()

    first.send = cancel
    decode(CHECKPOINT, [first, second])
    (expected,) = gt.generate(CHECKPOINT.model, [second.request], CHECKPOINT.markup, CHECKPOINT.policy, GREEDY)
    assert events[:5] == expected.tokens[:5] and len(events) == 7 and isinstance(events[-1], Generation)
    assert second_events[:-1] == expected.tokens and len(expected.tokens) > 20


@pytest.mark.parametrize("arm", ["memento", "full", "placebo", "restart", "restart-renumbered"])
def test_arms(arm: str) -> None:
    queued, events = job(settings=replace(SETTINGS, arm=arm))
    decode(CHECKPOINT, [queued])
    known = ARMS[arm]()
    policy, requests = known.adapt_policy(CHECKPOINT.policy), [queued.request]
    (expected,) = gt.generate(CHECKPOINT.model, requests, CHECKPOINT.markup, policy, GREEDY, known.eraser)
    assert events[:-1] == expected.tokens
    assert isinstance(events[-1], Generation) and (events[-1].kv_tokens == expected.kv_tokens).all()


@pytest.mark.parametrize("arm", ["memento", "full", "restart"])
def test_arms_under_another_law(arm: str) -> None:
    checkpoint = CHECKPOINT.with_law("window:60,20")
    settings = ServingSettings(checkpoint.markup, checkpoint.policy, arm, other_law=checkpoint.other_law)
    queued, events = job(settings=settings)
    decode(checkpoint, [queued])
    known = ARMS[arm]()
    (expected,) = gt.generate(
        checkpoint.model,
        [queued.request],
        checkpoint.markup,
        checkpoint.policy,
        GREEDY,
        known.eraser,
        law=known.adapt_law(checkpoint.law),
    )
    assert events[:-1] == expected.tokens and isinstance(events[-1], Generation)
    assert (events[-1].kv_tokens == expected.kv_tokens).all()
    assert (expected.peak_kv_tokens <= 61) == (arm != "full")


def test_policy_without_erasure_is_full_attention() -> None:
    queued, events = job(settings=replace(SETTINGS, policy=replace(SETTINGS.policy, keep_last_n_blocks=-1)))
    decode(CHECKPOINT, [queued])
    assert isinstance(events[-1], Generation) and events[-1].kv_tokens[-1] == len(events[-1].kv_tokens)


def test_failed_batch_sends_the_error_and_decoding_continues() -> None:
    """The decoding thread survives the error."""
    bad, good = job()[0], job()[0]
    done = {bad: threading.Event(), good: threading.Event()}
    received: dict[Job, list[JobEvent]] = {bad: [], good: []}
    for queued in (bad, good):

        def send(event: JobEvent, queued: Job = queued) -> None:
            received[queued].append(event)
            if not isinstance(event, int):
                done[queued].set()

        queued.send = send
    bad.request = replace(bad.request, prompt=[10**6])  # an invalid token id
    jobs = JobQueue(batch_size=1, capacity=2)
    jobs.put([bad, good])
    threading.Thread(target=decode_forever, args=(CHECKPOINT, jobs), daemon=True).start()
    assert done[bad].wait(60) and done[good].wait(60)
    assert isinstance(received[bad][-1], Exception) and isinstance(received[good][-1], Generation)
