"""The survey: each content scored once for each version, in the background, kept over a restart."""

import json

import pytest
from tests.app.pool import ScanPool
from tests.eyes import Eyes

from ctsam3d.labelapp import survey
from ctsam3d.labelapp.survey import Survey


class Watched(ScanPool):
    """A pool whose survey runs, with a stand-in for the model."""

    def restart(self):
        super().restart()
        self.eyes = Eyes()
        self.engine.segmenter = lambda: self.eyes
        self.survey.start = lambda datastore: Survey.start(self.survey, datastore)

    def look(self) -> int:
        """Patches that were encoded until all was done."""
        before = self.eyes.encoded
        super().look()
        return self.eyes.encoded - before


@pytest.fixture
def pool(tmp_path):
    return Watched(tmp_path, 3)


def test_every_scan_is_scored_once_a_version_and_kept(pool):
    assert pool.look() > 0
    version, found = pool.survey.scores(pool.images)
    assert version == "eyes-1" and set(found) == set(pool.images)
    assert pool.look() == 0
    pool.restart()
    assert pool.survey.scores(pool.images) == (version, found) and pool.look() == 0
    pool.eyes.info.version = "eyes-2"
    assert pool.look() > 0 and pool.survey.scores(pool.images)[0] == "eyes-2"
    lines = [json.loads(line) for line in pool.survey.path.read_text().splitlines()]
    assert sum("image" in line for line in lines) == 3 and sum("version" in line for line in lines) == 6


def test_labelled_scans_give_prototypes_for_the_others(pool):
    pool.label("s2")
    pool.look()
    _, found = pool.survey.scores(pool.images)
    assert set(found["s2"].prototypes) == {"box", "bar"}
    assert set(found["s0"].quality) == {"box", "bar"} and not found["s0"].prototypes
    assert pool.look() == 0
    pool.label("s1")  # scored before it was labelled
    pool.look()
    assert set(pool.survey.scores(pool.images)[1]["s1"].prototypes) == {"box", "bar"}
    assert pool.look() == 0


def test_copies_are_scored_once_and_damaged_files_not_at_all(pool):
    alone = pool.look()
    (pool.studies / "copy.nii.gz").write_bytes((pool.studies / "s0.nii.gz").read_bytes())
    (pool.studies / "broken.nii.gz").write_bytes((pool.studies / "s1.nii.gz").read_bytes()[:2000])
    pool.store.refresh()
    assert alone > 0 and pool.look() == 0
    _, found = pool.survey.scores(["copy", "s0", "broken"])
    assert found["copy"] == found["s0"] and "broken" not in found
    assert "damaged" in pool.survey.known("broken").problem


def test_a_torn_file_costs_only_what_is_torn(pool):
    pool.look()
    text = pool.survey.path.read_text()
    pool.survey.path.write_text(text[:-200])
    pool.restart()
    assert len(pool.survey.scores(pool.images)[1]) == 2
    assert 0 < pool.look()


def test_a_strategy_that_takes_scores_starts_it_and_does_not_wait(pool):
    reply = pool.ask("disagreement", "one")
    assert reply["id"] in pool.images
    pool.survey.wait()
    reply = pool.ask("disagreement", "two")
    assert reply["reason"].startswith("predictions disagree by")
    begun = []
    pool.survey.start = begun.append
    pool.ask("disagreement", "three")
    assert begun == []  # it looked a moment ago
    pool.desk._surveyed -= 5
    pool.ask("disagreement", "three")
    assert begun == [pool.store]
    pool.desk.close()
    pool.eyes.info.version = "eyes-2"
    assert pool.look() == 0  # closed


def test_weights_that_are_published_meanwhile_score_under_their_own_version(pool):
    old, new = Eyes("eyes-1"), Eyes("eyes-2")
    pool.engine.segmenter = lambda: new if old.encoded else old
    pool.look()
    assert old.encoded and new.encoded
    assert {version: len(found) for version, found in pool.survey._scores.items()} == {"eyes-1": 1, "eyes-2": 2}


def test_scores_of_old_versions_are_forgotten_and_the_file_stays_bounded(pool, monkeypatch):
    monkeypatch.setattr(survey, "_SPARE_LINES", 0)
    for number in range(6):
        pool.eyes.info.version = f"eyes-{number}"
        pool.look()
    assert list(pool.survey._scores) == ["eyes-4", "eyes-5"]
    assert len(pool.survey.path.read_text().splitlines()) == 3 + 6 * 3
    known = pool.survey.scores(pool.images)
    pool.restart()
    assert pool.survey.scores(pool.images) == known
    assert len(pool.survey.path.read_text().splitlines()) == 3 + 2 * 3
    pool.eyes.info.version = "eyes-5"
    assert pool.look() == 0


def test_weights_that_cannot_be_loaded_end_it(pool, caplog):
    pool.engine.segmenter = lambda: 1 / 0
    assert pool.look() == 0 and "the pool could not be looked at" in caplog.text
    assert pool.ask("coldstart")["id"] in pool.images
