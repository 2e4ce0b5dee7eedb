"""Expansions that go on between clicks, on the engine with stand-in sessions whose slices the test lets run."""

import itertools
import logging
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from ctsam3d.labelapp.infer import ClickEngine, Stopwatch
from ctsam3d.labelapp.requests import ClickRequest, ReplyOptions, Structure
from ctsam3d.labelapp.sessions import Image, SessionStore
from ctsam3d.labelapp.versions import Versions
from ctsam3d.volume import Box, Volume

SHAPE = (12, 4, 3)
IMAGE = Image("content", Volume(np.zeros(SHAPE, np.int16), np.diag([2.0, 2.0, 3.0, 1.0])))


@dataclass(frozen=True)
class Expansion:
    proposed: int
    segmented: int
    rejected: int
    ended: str
    queue: tuple = ()  # the session's own affair


class Session:
    """Its mask is `found` voxels of a row, one per click and one per slice; expansion ends at `target` of them."""

    clicks, patches, nbytes = (), 1, 100

    def __init__(self, network, structure_of):
        self.network, self.budgets, self.seconds = network, [], {}
        self.found = self.target = 0
        self._structure_of = structure_of

    def set_clicks(self, positive, negative, seconds=None, elsewhere=()):
        self.name = self._structure_of(positive)
        self.budgets.append(seconds)
        self.elsewhere = [*elsewhere]
        self.network.use(("click", self.name))
        if self.found == 0:
            self.found, self.target = 1, self.network.target

    @property
    def expanding(self):
        return self.found < self.target

    def go_on(self, seconds):
        self.network.use(("slice", self.name))
        self.found += 1

    @property
    def expansion(self):
        return Expansion(self.target, self.found, 0, "time budget" if self.expanding else "quiet")

    @property
    def mask_box_ijk(self):
        return Box((0, 0, 0), (self.found, 1, 1))

    def mask(self, box_ijk):
        return np.ones(box_ijk.shape, np.uint8)

    def probability(self, box_ijk):
        return np.ones(box_ijk.shape, np.float32)


class Network:
    """What sessions use, one at a time: `log` tells in which order.

    Each use waits while `let` is clear; with `slices_wait` those by slices alone.
    """

    def __init__(self, target):
        self.target, self.log, self.let = target, [], threading.Event()
        self.let.set()
        self.fail_slices = self.slices_wait = False
        self.sessions = []
        self._busy = threading.Lock()

    def use(self, what):
        assert self._busy.acquire(blocking=False), "two at a time"
        try:
            self.log.append(what)
            assert (what[0] == "click" and self.slices_wait) or self.let.wait(30)
            if self.fail_slices and what[0] == "slice":
                raise RuntimeError("network failed")
        finally:
            self._busy.release()

    def stop_slices(self):
        self.slices_wait = True
        self.let.clear()

    def slices(self):
        return [name for kind, name in list(self.log) if kind == "slice"]

    def session(self, volume, expand):
        self.sessions.append(Session(self, lambda positive: "abcd"[positive[0][0]]))
        return self.sessions[-1]


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def network():
    return Network(target=5)


@pytest.fixture
def engine(tmp_path, network):
    made = ClickEngine(Versions(tmp_path), "cpu", expand_seconds=3.0, sessions=SessionStore(max_sessions=3))
    info = SimpleNamespace(version="stand-in")
    made.segmenter = lambda: SimpleNamespace(session=network.session, info=info)
    yield made
    network.let.set()
    made.close()


def click(engine, names, client="client", write=False, **options):
    """One click on each structure; a structure's name is its voxel's letter."""
    structures = tuple(
        Structure(name, value, (("abcd".index(name), 0, 0),), ()) for value, name in enumerate(names, start=1)
    )
    label_names = tuple((s.name, s.value) for s in structures)
    request = ClickRequest(structures, label_names, client, True, ReplyOptions(write_file=write, **options))
    return engine.segment(request, IMAGE, Stopwatch())


def idle(engine):
    return engine._background._thread is None


def test_a_reply_comes_before_the_expansion_ends_and_the_next_has_what_was_found(engine, network):
    with engine._turns.taken("another"):  # no background meanwhile
        pool = ThreadPoolExecutor(1)
        first = pool.submit(click, engine, "a")
        until(lambda: engine._turns._clients)
    assert first.result(30)[1]["expansion"]["a"]["proposed"] == 5
    until(lambda: idle(engine))
    _, reply = click(engine, "a")  # the same list of clicks
    assert reply["expansion"] == {"a": {"proposed": 5, "segmented": 5, "rejected": 0, "ended": "quiet"}}
    assert network.log == [("click", "a"), *[("slice", "a")] * 4, ("click", "a")]


def test_structures_of_a_request_share_the_seconds(engine, network):
    click(engine, "abc")
    assert [session.budgets for session in network.sessions] == [[1.0]] * 3


def test_a_session_is_told_which_clicks_are_for_other_structures(engine, network):
    click(engine, "abc")
    assert [own.elsewhere for own in network.sessions] == [
        [(1, 0, 0), (2, 0, 0)], [(0, 0, 0), (2, 0, 0)], [(0, 0, 0), (1, 0, 0)]
    ]  # fmt: skip


def test_sessions_take_slices_in_rotation(engine, network):
    network.let.clear()
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(click, engine, "ab"), pool.submit(click, engine, "c", "other")]
        until(lambda: network.log)
        network.let.set()
        assert all(job.result(30) for job in jobs)
    until(lambda: idle(engine))
    slices = network.slices()
    assert sorted(slices) == [*"aaaabbbbcccc"]
    rest = slices[max(map(slices.index, "abc")) :]  # from when all of them are there
    assert all(one != other or set(rest[n:]) == {one} for n, (one, other) in enumerate(zip(rest, rest[1:])))


def test_a_click_of_another_client_waits_for_one_slice_at_most(engine, network):
    network.stop_slices()
    click(engine, "a", "client")
    until(lambda: network.slices())
    before = len(network.log)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(click, engine, "b", "other")
        until(lambda: engine._turns._clients)
        network.let.set()
        other.result(30)
    assert network.log[before] == ("click", "b")


def test_a_request_of_the_session_comes_after_the_running_slice(engine, network):
    network.stop_slices()
    click(engine, "a")
    until(lambda: network.slices())
    before = len(network.log)
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(click, engine, "a")
        (own,) = engine._sessions._held.values()
        until(lambda: own.requests == 1)  # it waits for the session
        network.let.set()
        _, reply = again.result(30)
    assert network.log[before] == ("click", "a")
    assert reply["expansion"]["a"]["segmented"] == before
    until(lambda: idle(engine))  # and the request let the rest go on
    assert len(network.slices()) == 4


def test_a_slice_that_fails_ends_that_session_only_and_until_its_next_request(engine, network, caplog):
    caplog.set_level(logging.INFO, "ctsam3d")
    network.fail_slices = True
    click(engine, "a")
    until(lambda: idle(engine))
    assert network.slices() == ["a"]
    assert "a of client client: expansion in the background failed" in caplog.text
    network.fail_slices = False
    click(engine, "b")
    until(lambda: idle(engine))
    assert network.slices() == ["a", *"bbbb"]
    click(engine, "a")
    until(lambda: idle(engine))
    assert network.slices() == ["a", *"bbbb", *"aaaa"]
    assert caplog.text.count("expansion in the background ended") == 2


def test_a_session_that_was_forgotten_goes_on_no_more(engine, network):
    network.target = 10**9
    network.stop_slices()  # before the first: between two of them the other client would not have to wait
    click(engine, "a", "one")
    until(network.slices)
    network.target = 5
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(click, engine, "bcd", "two")  # the store holds three
        until(lambda: engine._turns._clients)
        network.let.set()
        other.result(30)
    count = network.slices().count("a")
    until(lambda: idle(engine))
    assert network.slices().count("a") <= count + 1  # the running one
    assert network.slices().count("b") == 4


def test_a_request_that_fails_lets_the_rest_go_on(engine, network, monkeypatch):
    click(engine, "a")
    until(lambda: idle(engine))
    network.sessions[0].target = 8
    monkeypatch.setattr(network.sessions[0], "set_clicks", lambda *_, **__: 1 / 0)
    (own,) = engine._sessions._held.values()
    own.expanding = True
    with pytest.raises(ZeroDivisionError):
        click(engine, "a")
    until(lambda: idle(engine))
    assert len(network.slices()) == 7


def test_after_close_there_is_no_further_slice(engine, network):
    network.stop_slices()
    click(engine, "a")
    until(lambda: network.slices())
    count = len(network.log)
    closing = threading.Thread(target=engine.close)
    closing.start()
    until(lambda: engine._background._closed)
    network.let.set()
    closing.join(30)
    assert not closing.is_alive()
    click(engine, "a")  # clicks are answered as before
    assert len(network.log) == count + 1


def test_many_clients_and_structures_at_once_end(engine, network):
    """Requests of several structures in different orders, of few clients, against the background: nothing deadlocks."""
    engine._sessions._max_sessions = 12
    orders = list(itertools.permutations("abc"))

    def work(number):
        return click(engine, orders[number % 6], f"client {number % 4}")[1]["patches"]

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(work, range(200), timeout=60)) == [3] * 200
    until(lambda: idle(engine))
    assert sorted(network.slices()) == sorted([*"abc"] * 4 * 4)
    assert all(own.requests == 0 for own in engine._sessions._held.values())


def test_the_box_alone_is_told_and_written(engine, network):
    file, reply = click(engine, "a", write=True, box_only=True)
    (i, _, _) = shape = nib.load(file).shape
    assert 1 <= i <= 5
    assert reply["result_box"] == [[0, 0, 0], list(shape)]
    Path(file).unlink()
    assert "result_box" not in click(engine, "a")[1]


@pytest.mark.slow
def test_the_interpreter_ends_while_work_is_left(tmp_path):
    code = """
from types import SimpleNamespace
from ctsam3d.labelapp.background import BackgroundExpansion
from ctsam3d.labelapp.sessions import HeldSession, SessionKey, SessionStore
from ctsam3d.labelapp.turns import Turns
import numpy as np
volume = SimpleNamespace(array_ijk=np.zeros(1))
session = SimpleNamespace(expanding=True, go_on=lambda seconds: None, nbytes=1)
own = HeldSession(session, SimpleNamespace(content="c", volume=volume), "v", expanding=True)
store, key = SessionStore(), SessionKey("c", "liver", "client", True)
with store.locked([key], lambda: own):
    pass
BackgroundExpansion(store, Turns()).add(key, own)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
