"""The queue of the small server, and what it decodes."""

import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ghosttrace as gt
from ghosttrace.ablation.arms import ARMS
from ghosttrace.model.generate import Generation, Request
from ghosttrace.model.sampling import Sampling
from ghosttrace.serving.http.jobs import FullError, Heard, Job, Jobs, decode, work
from ghosttrace.serving.settings import Settings

CHECKPOINT = gt.load("toy-mixed")
LAW = Settings(CHECKPOINT.markup, CHECKPOINT.policy)
GREEDY = Sampling(160, temperature=0)


def job(message: str = "x042", law: Settings = LAW, sampling: Sampling = GREEDY) -> tuple[Job, list[Heard]]:
    """One, and what is heard of it."""
    heard: list[Heard] = []
    return Job(Request(CHECKPOINT.prompt_ids(message)), law, sampling, heard.append), heard


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=20), st.integers(1, 4))
def test_batches_are_in_order_and_of_one_kind(kinds: list[tuple[int, bool]], rows: int) -> None:
    """Nobody is forgotten or written twice, and those who have gone are not written."""
    waiting = [job(sampling=Sampling(length))[0] for length, _ in kinds]
    for one, (_, gone) in zip(waiting, kinds, strict=True):
        if gone:
            one.gone.set()
    jobs = Jobs(rows, room=20)
    jobs.put(waiting)
    left = [one for one in waiting if not one.gone.is_set()]
    while left:
        batch = jobs.take()
        assert batch == [one for one in left if one.sampling == left[0].sampling][:rows]
        left = [one for one in left if one not in batch]


def test_there_is_room_for_so_many() -> None:
    jobs = Jobs(rows=1, room=2)
    jobs.put([job()[0]])
    with pytest.raises(FullError):
        jobs.put([job()[0], job()[0]])
    jobs.put([job()[0]])


def test_one_who_leaves_ends_and_the_others_go_on() -> None:
    (one, heard), (other, others) = job("x042"), job("x042")

    def leave(said: Heard) -> None:
        heard.append(said)
        if len(heard) == 5:
            one.gone.set()

    one.hear = leave
    decode(CHECKPOINT, [one, other])
    (expected,) = gt.generate(CHECKPOINT.model, [other.request], CHECKPOINT.markup, CHECKPOINT.policy, GREEDY)
    assert heard[:5] == expected.tokens[:5] and len(heard) == 7 and isinstance(heard[-1], Generation)
    assert others[:-1] == expected.tokens and len(expected.tokens) > 20


@pytest.mark.parametrize("arm", ["memento", "full", "placebo", "restart", "restart-renumbered"])
def test_arms(arm: str) -> None:
    one, heard = job(law=replace(LAW, arm=arm))
    decode(CHECKPOINT, [one])
    told = ARMS[arm]()
    law, requests = told.law(CHECKPOINT.policy), [one.request]
    (expected,) = gt.generate(CHECKPOINT.model, requests, CHECKPOINT.markup, law, GREEDY, told.eraser)
    assert heard[:-1] == expected.tokens
    assert isinstance(heard[-1], Generation) and (heard[-1].kv_tokens == expected.kv_tokens).all()


def test_a_law_that_never_erases_is_full_attention() -> None:
    one, heard = job(law=replace(LAW, policy=replace(LAW.policy, keep_last_n_blocks=-1)))
    decode(CHECKPOINT, [one])
    assert isinstance(heard[-1], Generation) and heard[-1].kv_tokens[-1] == len(heard[-1].kv_tokens)


def test_a_batch_that_fails_is_told_and_the_next_is_written() -> None:
    """The thread outlives it."""
    bad, good = job()[0], job()[0]
    done = {bad: threading.Event(), good: threading.Event()}
    said: dict[Job, list[Heard]] = {bad: [], good: []}
    for one in (bad, good):

        def hear(what: Heard, one: Job = one) -> None:
            said[one].append(what)
            if not isinstance(what, int):
                done[one].set()

        one.hear = hear
    bad.request = replace(bad.request, prompt=[10**6])  # no such token
    jobs = Jobs(rows=1, room=2)
    jobs.put([bad, good])
    threading.Thread(target=work, args=(CHECKPOINT, jobs), daemon=True).start()
    assert done[bad].wait(60) and done[good].wait(60)
    assert isinstance(said[bad][-1], Exception) and isinstance(said[good][-1], Generation)
