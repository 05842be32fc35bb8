"""Turns in the queue, and the text of an answer that comes in pieces."""

import threading

import pytest

from xtuner_plugins.serving.api_engine import AnswerText, FairQueue, Job
from xtuner_plugins.serving.api_messages import ApiError


def job(client, events=None):
    return Job(request=None, client=client, on_event=(events if events is not None else []).append)


def test_clients_take_turns():
    queue, jobs = FairQueue(9), [job("a"), job("a"), job("a"), job("b"), job("b"), job("c")]
    for one in jobs:
        queue.put(one)
    order = [jobs.index(queue.take()) for _ in jobs]
    assert order == [0, 3, 5, 1, 4, 2]


def test_what_waits_and_what_runs_is_limited_and_dropped_jobs_make_room():
    queue, first, second = FairQueue(2), job("a"), job("a")
    queue.put(first)
    queue.put(second)
    with pytest.raises(ApiError, match="2 requests are waiting"):
        queue.put(job("b"))
    assert queue.take() is first and len(queue) == 2
    queue.drop(second)
    queue.drop(second)  # nothing happens
    assert len(queue) == 1
    queue.put(job("b"))


def test_a_closed_queue_wakes_who_waits_and_takes_no_more():
    queue, found = FairQueue(2), []
    thread = threading.Thread(target=lambda: found.append(queue.take()))
    thread.start()
    assert queue.close() == []
    thread.join(10)
    assert found == [None]
    with pytest.raises(ApiError, match="stopping"):
        queue.put(job("a"))


@pytest.mark.parametrize(
    "pieces, stops, expected",
    [
        (["  A ", "cat. ", "\n"], [], "A cat."),
        (["A c", "at. EN", "D Never"], ["END"], "A cat."),
        (["A EN", "EMY"], ["END"], "A ENEMY"),
        (["one\n", "two"], ["\n"], "one"),
        (["a b", "c d"], ["d", "bc"], "a"),
        (["abab", "ac"], ["abac"], "ab"),
        (["END"], ["END"], ""),
        ([], ["END"], ""),
    ],
)
def test_text_is_cut_at_stops_and_trimmed_however_it_comes(pieces, stops, expected):
    whole = "".join(pieces)
    for split in (pieces, [whole], list(whole)):
        text = AnswerText(stops)
        sent = [text.feed(piece) for piece in split]
        assert "".join(sent) + text.finish() == expected
        assert text.stopped == any(stop in whole for stop in stops)
