"""What is kept between clicks: images by content, sessions by owner, both bounded."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ctsam3d.labelapp.sessions import (
    HeldSession,
    Image,
    ImageCache,
    SessionKey,
    SessionStore,
)
from ctsam3d.volume import Volume


class Reader:
    """Reads a text file as a volume filled with its number, and counts."""

    def __init__(self, voxels=8):
        self.voxels = voxels
        self.paths = []

    def __call__(self, path):
        self.paths.append(str(path))
        return Volume(np.full((self.voxels, 1, 1), int(Path(path).read_text()), np.int16), np.eye(4))


def value(image: Image) -> int:
    return int(image.volume.array_ijk[0, 0, 0])


def test_an_image_is_read_once_per_content(tmp_path):
    reader = Reader()
    cache = ImageCache(reader)
    for name in ("a.nii", "b.nii", "a.nii"):
        (tmp_path / name).write_text("5")
        assert value(cache.get(tmp_path / name)) == 5
    assert len(reader.paths) == 1


def test_a_replaced_file_is_read_again_even_with_its_old_size_and_time(tmp_path):
    cache = ImageCache(Reader())
    path = tmp_path / "a.nii"
    path.write_text("1")
    before = path.stat()
    first = cache.get(path)
    path.write_text("2")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = cache.get(path)
    assert (value(first), value(second)) == (1, 2)
    assert first.content != second.content
    other = tmp_path / "b.nii"
    other.write_text("3")
    os.replace(other, path)
    assert value(cache.get(path)) == 3


def test_a_folder_changes_with_any_of_its_files(tmp_path):
    cache = ImageCache(lambda path: Volume(np.full((1, 1, 1), len(os.listdir(path)), np.int16), np.eye(4)))
    (tmp_path / "1.dcm").write_text("1")
    assert value(cache.get(tmp_path)) == 1
    (tmp_path / "2.dcm").write_text("2")
    assert value(cache.get(tmp_path)) == 2


def test_the_cache_is_bounded_and_keeps_the_newest(tmp_path):
    reader = Reader(voxels=10)  # 20 bytes
    cache = ImageCache(reader, max_bytes=45)
    for name in "abcdd":
        (tmp_path / name).write_text(str(ord(name)))
        cache.get(tmp_path / name)
    assert len(reader.paths) == 4
    cache.get(tmp_path / "c")  # the two newest fit
    assert len(reader.paths) == 4
    cache.get(tmp_path / "a")
    assert len(reader.paths) == 5
    tiny = ImageCache(reader, max_bytes=1)
    assert value(tiny.get(tmp_path / "a")) == ord("a")
    tiny.get(tmp_path / "a")
    assert len(reader.paths) == 6


def test_a_file_that_changes_while_it_is_read_is_never_mixed_up(tmp_path):
    path = tmp_path / "a.nii"
    path.write_text("1")

    def read_and_change(path):
        volume = Reader()(path)
        Path(path).write_text(str(value(Image("", volume)) + 1))
        return volume

    with pytest.raises(ValueError, match="must not change while it is read"):
        ImageCache(read_and_change).get(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.nii does not exist"):
        ImageCache(Reader()).get(tmp_path / "nowhere.nii")


def test_errors_are_not_kept(tmp_path):
    path = tmp_path / "a.nii"
    path.write_text("broken")
    cache = ImageCache(Reader())
    with pytest.raises(ValueError, match="broken"):
        cache.get(path)
    path.write_text("4")
    assert value(cache.get(path)) == 4


def test_many_threads_read_an_image_once(tmp_path):
    (tmp_path / "a.nii").write_text("6")
    reader = Reader()
    cache = ImageCache(reader)
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda _: value(cache.get(tmp_path / "a.nii")), range(32)))
    assert values == [6] * 32
    assert len(reader.paths) == 1


def key(structure="liver", client="a"):
    return SessionKey("content", structure, client, True)


class Maker:
    """Makes held sessions of `nbytes`, numbered, on one scan of 2,000 bytes."""

    def __init__(self, nbytes=10_000):
        self.nbytes, self.made = nbytes, 0
        self.image = Image("content", Volume(np.zeros((10, 10, 10), np.int16), np.eye(4)))

    def __call__(self):
        self.made += 1
        return HeldSession(SimpleNamespace(number=self.made, nbytes=self.nbytes), self.image, "v")


def test_a_session_per_structure_and_client():
    store, make = SessionStore(), Maker()
    for client in "ab":
        with store.locked([key("liver", client), key("spleen", client)], make) as held:
            assert held[0] is not held[1]
    with store.locked([key("spleen", "b"), key("liver", "b")], make) as held:
        assert [own.session.number for own in held] == [4, 3]  # in the order asked for
    assert make.made == 4


def test_the_number_of_sessions_is_bounded():
    store, make = SessionStore(max_sessions=2), Maker()
    for client in "abc":
        with store.locked([key(client=client)], make):
            pass
    assert len(store) == 2
    with store.locked([key(client="c")], make), store.locked([key(client="b")], make):
        assert make.made == 3
    with store.locked([key(client="a")], make):
        assert make.made == 4


def test_the_bytes_of_sessions_are_bounded_and_an_image_counts_once():
    store, make = SessionStore(max_bytes=2_000 + 3 * 10_000), Maker()
    for client in "abcd":
        with store.locked([key(client=client)], make):
            pass
    assert len(store) == 3


def test_sessions_that_grew_between_requests_push_out_the_oldest():
    store, make = SessionStore(max_bytes=2_000 + 3 * 10_000), Maker()
    for client in "abc":
        with store.locked([key(client=client)], make) as (own,):
            pass
    assert len(store) == 3
    with store.between_requests(key(client="c"), own) as free:
        assert free and own.lock.locked()
        own.session.nbytes = 90_000
    assert len(store) == 1  # those of the newest request stay, however large
    assert store.holds([key(client="c")])


def test_between_requests_there_is_no_waiting():
    store, make = SessionStore(max_sessions=1), Maker()
    with store.locked([key()], make) as (own,), store.between_requests(key(), own) as free:
        assert not free
    with store.between_requests(key(), own) as free:
        assert free
    with store.locked([key("spleen")], make):
        pass
    with store.between_requests(key(), own) as free:
        assert not free  # forgotten
    assert not own.lock.locked()


def test_work_between_requests_forgets_nothing_that_a_request_has():
    store, make = SessionStore(max_sessions=2), Maker()
    with store.locked([key(client="a")], make) as (own,):
        pass
    with store.locked([key("liver", "b"), key("spleen", "b")], make):
        with store.between_requests(key(client="a"), own) as free:
            assert free
        assert store.holds([key("liver", "b"), key("spleen", "b")])
    assert len(store) == 2
    assert not store.holds([key(client="a")])


def test_a_session_in_use_that_is_forgotten_stays_with_its_user_and_is_made_anew():
    store, make = SessionStore(max_sessions=1), Maker()
    with store.locked([key(client="a")], make) as mine:
        with store.locked([key(client="b")], make):
            pass
        with store.locked([key(client="a")], make) as again:  # does not wait for the one that was forgotten
            assert (mine[0].session.number, again[0].session.number) == (1, 3)
    assert len(store) == 1


def test_requests_for_the_same_structures_in_any_order_do_not_deadlock():
    store, make = SessionStore(), Maker()
    names, busy, seen = ["liver", "spleen", "aorta"], threading.Lock(), []

    def work(turn):
        with store.locked([key(name) for name in (names if turn % 2 else names[::-1])], make):
            assert busy.acquire(blocking=False)  # nobody else has any of the three
            seen.append(turn)
            busy.release()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200), timeout=30))
    assert sorted(seen) == list(range(200))
    assert make.made == 3
