"""TotalSegmentator's data set, version 1, 2 or 3, as a MONAI Label datastore.

Wasserthal et al., "TotalSegmentator: Robust Segmentation of 104 Anatomic Structures in CT Images", Radiology: AI 2023.
The paper trains on v1's 1082 + 57 cases of the parts train and val, and tests on its 65 of test.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path

from tqdm import tqdm

from ctsam3d.data.convert.case import convert_case
from ctsam3d.data.convert.cases import TEST_SHARE, SourceCase, find_source_cases, fingerprint
from ctsam3d.data.convert.report import write_report
from ctsam3d.data.convert.store import Record, Store


@dataclass(frozen=True)
class Conversion:
    """The result.

    Attributes:
        records: of all cases in the datastore and of those that were refused, by name.
        report: path of ``report.md``.
    """

    records: tuple[Record, ...]
    report: Path

    @property
    def refused(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.refused)


def convert_totalseg(
    source: str | os.PathLike,
    out: str | os.PathLike,
    workers: int = 1,
    meta: str | os.PathLike | None = None,
    test_share: float = TEST_SHARE,
    names: Sequence[str] | None = None,
) -> Conversion:
    """Converts the cases of a folder; can be killed at any time and called again, and goes on where it was.

    A case is a folder with ``ct.nii.gz`` or DICOM slices, and with ``segmentations/<name>.nii.gz``, or with one label
    map (``seg.nii.gz``) whose names are in ``labels.json`` or in its own header, or without labels. Names are those of
    any version, see `our_name`. A case that is refused is tried again by the next call.

    Args:
        source: folder of cases, or a case.
        out: folder of the datastore; made where missing. No server may write to it meanwhile.
        workers: processes; each takes two to three times the memory of its scan as int16.
        meta, test_share, names: see `find_source_cases`.

    Raises:
        FileNotFoundError: no such folder or table.
        ValueError: see `find_source_cases`; a case that is in the datastore from other files or in another part; or
            another conversion that writes there.
        OSError: the datastore cannot be written to.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    cases = find_source_cases(source, meta, test_share, names)
    store = Store(Path(out))
    with store.only_one():
        finished = store.records()
        for case in cases:
            _check_same(case, finished.get(case.name), store)
        left = [case for case in cases if case.name not in finished]
        refused = []
        with tqdm(total=len(cases), initial=len(cases) - len(left), desc="converting", unit="case") as bar:
            for record in _convert(left, store, min(workers, max(1, len(left)))):
                refused += [record] if record.refused else []
                bar.set_postfix(refused=len(refused), refresh=False)
                bar.update()
        done = list(store.records().values())
        store.write_config(done)
        store.write_split(done)
        records = sorted([*done, *refused], key=lambda record: record.case)
        return Conversion(tuple(records), write_report(store.folder, records))


def _check_same(case: SourceCase, record: Record | None, store: Store) -> None:
    if record is None:
        return
    if record.source != fingerprint(case.folder):
        raise ValueError(f"case {case.name} is in {store.folder} already, from other files; give another --out")
    if record.part != case.part:
        raise ValueError(
            f"case {case.name} is in {store.folder} for {record.part}, and would be for {case.part} now; "
            "a split is never changed, give another --out"
        )


def _convert(cases: Sequence[SourceCase], store: Store, workers: int) -> Iterator[Record]:
    """The records as they come."""
    if workers == 1:
        yield from (convert_case(case, store) for case in cases)
        return
    # Workers are forked from a process that has loaded the package and does nothing else: cheap, and without the
    # caller's threads and files.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([convert_case.__module__])
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        futures = [pool.submit(convert_case, case, store) for case in cases]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """Ends this worker when the process that started it is gone, killed or not."""

    def watch(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(multiprocessing.parent_process().sentinel,), daemon=True).start()
