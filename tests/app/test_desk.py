"""What the desk hands out: free scans that can be used, to one client each, by every strategy, with the reason."""

import threading

import numpy as np
import pytest
from tests.app.labelling import INFO, scan
from tests.app.pool import AFFINE, ScanPool

from ctsam3d.data.files import append_json
from ctsam3d.data.io import write_volume
from ctsam3d.labelapp.desk import Asked, active_folder, parse_asked
from ctsam3d.labelapp.strategy import DEFAULT
from ctsam3d.volume import Volume

ALL = ("foreground_random", "random", "first", "coldstart", "disagreement", "click_effort", "diverse_uncertain")


@pytest.fixture
def pool(tmp_path):
    return ScanPool(tmp_path, 6)


def test_the_default_comes_first_in_what_viewers_offer(pool):
    assert tuple(pool.strategies) == ALL and DEFAULT == ALL[0]


# ---- leases --------------------------------------------------------------------------------------------------------


def test_everybody_gets_another_scan_and_a_reason(pool):
    reply = pool.ask("first", "one")
    assert (reply["id"], reply["reason"], reply["lease_until"]) == ("s0", "the first that is free", 1060.0)
    assert pool.ids("first", "two", k=2) == ["s1", "s2"]
    reply = pool.ask("first", "three", k=9)
    assert [sample["id"] for sample in reply["samples"]] == ["s3", "s4", "s5"]
    assert reply["leased"] == 3
    reply = pool.ask("first", "four")
    assert "id" not in reply and reply["samples"] == []
    assert reply["reason"].startswith("no scan is free: of 6 without a final label, others have 6")


def test_asking_again_skips_and_the_skipped_come_last(pool):
    assert [pool.ask("first", "one")["id"] for _ in range(3)] == ["s0", "s1", "s2"]
    assert pool.ids("first", "two") == ["s0"]  # others may have them
    assert pool.ids("first", "one", k=9) == ["s3", "s4", "s5", "s1", "s2"]
    assert pool.desk.leases.now().held.keys() == set(pool.images)


def test_submitted_expired_and_after_a_restart(pool):
    assert pool.ids("first", "one") == ["s0"] and pool.ids("first", "two") == ["s1"]
    pool.restart()
    assert pool.ids("first", "three") == ["s2"]
    pool.label("s1")
    pool.desk.submitted(pool.store, (), "s1")
    assert set(pool.desk.leases.now().held) == {"s0", "s2"}
    pool.clock.now += 61
    assert pool.ids("first", "four", k=9) == ["s0", "s2", "s3", "s4", "s5"]


def test_what_another_one_submits_meanwhile_is_not_handed_out(pool):
    put_down = pool.desk._put_down

    def slow(datastore, asked):  # between a look at the datastore and the lease
        put_down(datastore, asked)
        pool.label("s0")
        pool.desk.submitted(pool.store, (), "s0")

    pool.desk._put_down = slow
    assert pool.ids("first", "two") == ["s1"]


def test_given_back_by_its_client_or_by_an_admin(pool):
    pool.ask("first", "one")
    assert not pool.desk.give_back("s0", "two")
    assert pool.desk.give_back("s0", "one") and not pool.desk.give_back("s0", None)
    assert pool.ids("first", "two") == ["s0"]
    assert pool.desk.give_back("s0", None)


def test_eight_clients_at_once(tmp_path):
    pool, got, start = ScanPool(tmp_path, 16), [], threading.Barrier(8)

    def ask(client: str) -> None:
        start.wait()
        got.extend(pool.ids("random", client, k=2))

    threads = [threading.Thread(target=ask, args=(f"client{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(pool.images)


# ---- what is passed over -------------------------------------------------------------------------------------------


def test_broken_large_and_other_images_are_passed_over_with_a_reason(pool):
    (pool.studies / "a_broken.nii.gz").write_bytes((pool.studies / "s0.nii.gz").read_bytes()[:3000])
    write_volume(pool.studies / "b_large.nii.gz", Volume(np.zeros((60, 60, 60), np.int16), AFFINE))
    write_volume(pool.studies / "c_mr.nii.gz", Volume(np.abs(scan(0)[0].array_ijk), AFFINE))
    write_volume(pool.studies / "d_empty.nii.gz", Volume(np.full((9, 9, 9), -1000, np.int16), AFFINE))
    pool.store.refresh()
    pool.store.update_image_info("s1", {"split": "test"})
    reply = pool.ask("first", "one", k=20)
    assert [sample["id"] for sample in reply["samples"]] == ["s0", "s2", "s3", "s4", "s5"]
    reasons = reply["passed_over"]
    assert reply["passed_over_count"] == 5
    assert "cannot be read, it is damaged" in reasons["a_broken"] and str(pool.studies) not in reasons["a_broken"]
    assert "must hold at most" in reasons["b_large"] and "(60, 60, 60)" in reasons["b_large"]
    assert reasons["c_mr"].startswith("is no CT in HU: its lowest value is ")
    assert reasons["d_empty"] == "shows nothing: its values are -1000 to -1000"
    assert reasons["s1"] == "is held out for testing"


def test_a_file_that_was_mended_is_looked_at_again(pool):
    good = (pool.studies / "s0.nii.gz").read_bytes()
    (pool.studies / "s0.nii.gz").write_bytes(good[:3000])
    assert pool.ids("first", "one") == ["s1"]
    pool.restart()
    assert "s0" in pool.ask("first", "two")["passed_over"]
    (pool.studies / "s0.nii.gz").write_bytes(good)
    assert pool.ids("first", "three") == ["s0"]


def test_a_copy_is_handed_out_when_nothing_else_is_left(pool):
    (pool.studies / "a_copy.nii.gz").write_bytes((pool.studies / "s0.nii.gz").read_bytes())
    pool.store.refresh()
    for strategy in ALL:
        chosen = pool.ids(strategy, k=6)
        assert len({"a_copy", "s0"} & set(chosen)) == 1 and len(chosen) == 6, strategy
    pool.restart()
    assert set(pool.ids("random", k=7)) == {"a_copy", *pool.images}
    pool.label("s0")
    assert pool.ids("first", k=7)[-1] == "a_copy"


# ---- strategies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ALL)
def test_every_strategy_honours_k_and_seed_with_and_without_scores(pool, strategy):
    for scored in (False, True):
        chosen = pool.ids(strategy, "one", k=3, seed=5)
        pool.desk.leases.path.unlink()
        assert pool.ids(strategy, "two", k=3, seed=5) == chosen and len(set(chosen)) == 3
        pool.desk.leases.path.unlink()
        if not scored:
            for number, image in enumerate(pool.images):
                pool.score(image, (number, 0), 0.1 * number, 0.9 - 0.1 * number)


def test_scores_decide(pool):
    for number, image in enumerate(pool.images):
        place = 20.0 if number == 4 else 0.1 * number
        pool.score(image, (place, 0), 0.01 + 0.9 * (number == 2), 0.8 - 0.5 * (number == 3))
    pool.ids("coldstart", "one", k=2)
    assert "s4" in pool.desk.leases.now().of("one")
    pool.desk.leases.path.unlink()
    reply = pool.ask("click_effort", "one")
    assert reply["id"] == "s3" and "clicks to 0.9 (0 sessions seen)" in reply["reason"]
    assert pool.ids("disagreement", seed=0) == ["s2"]
    pool.desk.leases.path.unlink()
    assert set(pool.ids("diverse_uncertain", "two", k=2)) == {"s2", "s4"}


def test_scans_that_look_like_the_labelled_ones_are_handed_out_all_the_same(pool):
    for image in pool.images:
        pool.score(image, (1.0, 2.0))
    pool.label("s0")
    reply = pool.ask("coldstart", k=9)
    assert {sample["id"] for sample in reply["samples"]} == set(pool.images) - {"s0"}
    assert reply["reason"].startswith("no free scan is unlike what is labelled; drawn at random")


def test_what_sessions_cost_is_fitted_as_they_come(pool):
    assert pool.desk.fitted().sessions == 0
    rows = [{"clicks": n, "quality": 0.6, "dsc": 0.5} for n in (1, 3)] + [{"clicks": 0, "quality": None, "dsc": None}]
    append_json(pool.desk.effort.path, [{"event": "saved", "image": "s0", "time": 1, "user": "", "structures": rows}])
    pool.restart()
    found = pool.desk.fitted()
    assert found.sessions == 2 and found is pool.desk.fitted()
    assert pool.desk.effort.spent()[0] == (0.6, 0.5, 1) and np.isnan(pool.desk.effort.spent()[1][1])


def test_without_scores_they_draw_at_random_and_say_so(pool):
    reply = pool.ask("disagreement")
    assert reply["reason"].startswith("no free scan is scored yet; drawn at random")
    pool.restart()
    pool.desk.leases.path.unlink()
    pool.score("s5", disagreement=0.5)
    reply = pool.ask("disagreement")
    assert reply["id"] == "s5" and "; 1 of " in reply["reason"] and "are scored so far" in reply["reason"]


def test_scores_of_the_version_that_scored_most(pool):
    for image in pool.images:
        pool.score(image, version="old", disagreement=0.2)
    pool.score("s3", version="new", disagreement=0.9)
    version, found = pool.survey.scores(pool.images)
    assert version == "old" and len(found) == 6
    for image in pool.images:
        pool.score(image, version="new", disagreement=0.9)
    assert pool.survey.scores(pool.images)[0] == "new"


def test_wanted_structures(pool):
    pool.store.update_image_info("s4", {"structures": ["liver", "spleen"]})
    pool.store.update_image_info("s0", {"structures": ["femur_left"]})
    pool.label("s2", "original", INFO)  # box and bar
    assert pool.ids("foreground_random", "one", structures="liver") == ["s4"]
    assert pool.ids("foreground_random", "two", structures=["bar", "tumour"]) == ["s2"]
    assert pool.ids("foreground_random", "three", structures=["liver"], k=9)[-1] == "s0"


def test_structures_choose_among_the_scores(pool):
    for image in pool.images:
        pool.score(image, quality=0.5, name="liver")
    for image, quality in (("s1", 0.9), ("s2", 0.1)):
        known = pool.survey.known(image)
        pool.survey._scores["v1"][known.content].quality["spleen"] = quality
    pool.store.update_image_info("s2", {"structures": ["spleen"]})
    assert pool.ids("click_effort", structures=["spleen"]) == ["s2"]


# ---- requests ------------------------------------------------------------------------------------------------------


def test_requests_are_checked():
    asked = parse_asked({"client": "c", "client_name": "me", "structures": " liver, ,spleen", "k": "3", "seed": 7})
    assert asked == Asked("c", "me", ("liver", "spleen"), 3, 7)
    assert parse_asked({"client_id": "me"}) == Asked("me", "me")
    for request, words in (
        ({"k": 0}, "k must be a whole number from 1 to 100, got '0'"),
        ({"k": 1.5}, "k must be"),
        ({"k": True}, "k must be"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": float("inf")}, "seed must be"),
        ({"structures": 3}, "structures must be a list of names, got '3'"),
        ({"structures": ["a", 1]}, "structures must be"),
    ):
        with pytest.raises(ValueError, match=words):
            parse_asked(request)


def test_each_studies_folder_has_a_state_of_its_own(tmp_path):
    one, other = (active_folder(tmp_path, str(tmp_path / name)) for name in ("one", "other"))
    assert one != other and one.parent == tmp_path / "model" / "active"
    assert active_folder(tmp_path, str(tmp_path / "x" / ".." / "one")) == one
