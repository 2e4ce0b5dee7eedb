"""Leases: never two clients on one scan, also at once, after a restart, and when their time is over."""

import json
import threading

import pytest

from ctsam3d.labelapp.leases import SKIPPED_SECONDS, Leases


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def leases(tmp_path, clock):
    return Leases(tmp_path, 60.0, clock)


def take_first(leases: Leases, images, client: str) -> str | None:
    with leases.changing() as table:
        image = next((image for image in images if image not in table.held), None)
        if image is not None:
            table.take(image, client, client, leases.seconds)
        return image


def test_a_scan_is_leased_to_one_client(leases):
    assert take_first(leases, "ab", "one") == "a"
    assert take_first(leases, "ab", "two") == "b"
    assert take_first(leases, "ab", "three") is None
    with pytest.raises(ValueError, match="image must be free, 'a' is leased to one"), leases.changing() as table:
        table.take("a", "two", "two", 60)
    assert leases.now().of("one") == ["a"] and leases.now().held["a"].client == "one"


def test_leases_survive_a_restart_and_end_in_time(leases, clock, tmp_path):
    take_first(leases, "a", "one")
    again = Leases(tmp_path, 60.0, clock)
    assert take_first(again, "a", "two") is None
    clock.now += 59.9
    assert take_first(again, "a", "two") is None
    clock.now += 0.1
    assert take_first(again, "a", "two") == "a"


def test_given_back_and_skipped(leases, clock):
    take_first(leases, "ab", "one")
    with leases.changing() as table:
        table.give_back(["a", "unknown"])
    assert take_first(leases, "ab", "one") == "a"
    with leases.changing() as table:
        table.skip("a", "one")
    table = leases.now()
    assert table.held == {} and table.skipped == {"one": {"a": 1000.0}}
    clock.now += SKIPPED_SECONDS
    assert leases.now().skipped == {}


def test_nothing_is_kept_of_a_block_that_fails(leases):
    with pytest.raises(RuntimeError), leases.changing() as table:
        table.take("a", "one", "one", 60)
        raise RuntimeError
    assert leases.now().held == {} and not leases.path.exists()


def test_a_file_that_cannot_be_read_frees_all(leases, caplog):
    take_first(leases, "a", "one")
    for broken in ("{", "[]", json.dumps({"held": {"a": {"client": "one"}}, "skipped": {}})):
        leases.path.write_text(broken)
        assert leases.now().held == {}
    assert "every scan counts as free" in caplog.text
    assert take_first(leases, "a", "two") == "a"


def test_eight_clients_at_once_never_get_the_same(tmp_path):
    """Each through an own object, as processes would."""
    images, got, start = [f"scan{n}" for n in range(40)], {}, threading.Barrier(8)

    def ask(client: str) -> None:
        own = Leases(tmp_path, 60.0)
        start.wait()
        got[client] = [take_first(own, images, client) for _ in range(5)]

    threads = [threading.Thread(target=ask, args=(f"client{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(image for found in got.values() for image in found) == sorted(images)
    table = Leases(tmp_path, 60.0).now()
    assert all(table.held[image].client == client for client, found in got.items() for image in found)
