"""Whose turn it is: threads queue while a turn is held, and write down the order in which they get theirs."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ctsam3d.labelapp.turns import Turns


def waiting(turns):
    return sum(map(len, turns._clients.values())) + len(turns._background)


class Queue:
    """Threads that wait in a known order, behind a turn of client `holder` that lasts until `served`."""

    def __init__(self, holder="holder"):
        self.turns, self.order, self._holder = Turns(), [], holder
        self._threads, self._release = [], threading.Event()
        self._start(holder, self._release.wait)

    def join(self, client, during=lambda: None):
        """Another turn is asked for, by a client or (None) in the background; `during` runs in it."""
        expected = waiting(self.turns) + 1
        self._start(client, during)
        while waiting(self.turns) < expected:
            time.sleep(0.0005)

    def served(self):
        """Who had a turn after the first one, in order."""
        self._release.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()
        assert waiting(self.turns) == 0
        return self.order[1:]

    def _start(self, client, during):
        begun = threading.Event()

        def work():
            with self.turns.idle() if client is None else self.turns.taken(client):
                self.order.append(client)
                begun.set()
                during()

        self._threads.append(threading.Thread(target=work, daemon=True))
        self._threads[-1].start()
        if len(self._threads) == 1:
            assert begun.wait(30)


def test_clients_take_turns_whatever_they_queued():
    queue = Queue()
    for client in "AAAABBC":
        queue.join(client)
    assert queue.served() == [*"ABCABAA"]


def test_who_has_the_turn_comes_after_those_who_wait():
    queue = Queue(holder="A")
    for client in ("A", "A", "A", "B"):
        queue.join(client)
    assert queue.served() == ["B", "A", "A", "A"]


def test_one_client_is_served_in_the_order_in_which_it_came():
    queue, order = Queue(), []
    for number in range(5):
        queue.join("A", during=lambda number=number: order.append(number))
    queue.served()
    assert order == [0, 1, 2, 3, 4]


def test_background_work_waits_until_no_client_does():
    queue = Queue()
    for client in (None, "A", None, "B", "A"):
        queue.join(client)
    assert queue.served() == ["A", "B", "A", None, None]


def test_a_client_that_comes_during_background_work_is_next():
    queue = Queue(holder=None)
    queue.join(None)
    queue.join("A")
    assert queue.served() == ["A", None]


def test_a_client_that_comes_later_waits_for_one_turn_of_each_other():
    """It comes while A has the first of many turns: B's one and C's one are before it, no second one of A."""
    queue = Queue()
    queue.join("A", during=lambda: queue.join("D"))
    for client in ("A", "A", "B", "B", "C"):
        queue.join(client)
    assert queue.served() == ["A", "B", "C", "D", "A", "B", "A"]


def test_a_turn_that_fails_is_over():
    turns = Turns()
    for turn in (turns.taken("A"), turns.idle()):
        with pytest.raises(ZeroDivisionError), turn:
            raise ZeroDivisionError
    with turns.taken("B"):
        pass


def test_failures_while_others_wait():
    turns, served = Turns(), []

    def work(number):
        with turns.taken(str(number % 3)):
            served.append(number)
            if number % 2:
                raise ValueError(number)

    with ThreadPoolExecutor(16) as pool:
        failed = [type(f.exception(30)) for f in [pool.submit(work, number) for number in range(100)]]
    assert failed == [type(None), ValueError] * 50
    assert sorted(served) == list(range(100))


def test_many_threads_one_turn_at_a_time():
    turns, busy, count = Turns(), threading.Lock(), []

    def work(number):
        with turns.idle() if number % 5 == 0 else turns.taken(str(number % 7)):
            assert busy.acquire(blocking=False)
            count.append(number)
            busy.release()

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(2000), timeout=60))
    assert sorted(count) == list(range(2000))
