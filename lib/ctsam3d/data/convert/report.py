"""What became of the cases: a table with a row a case, and a page that counts the damage."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ctsam3d.data.convert.cases import TEST, TRAINING
from ctsam3d.data.convert.store import Record
from ctsam3d.data.files import atomic_path
from ctsam3d.data.labels import NAMES

# What is counted: title, and how often it is in a case.
DAMAGE: tuple[tuple[str, Callable[[Record], int]], ...] = (
    ("image refused, or a mask that cannot be used", lambda r: int(bool(r.refused))),
    ("image direction not orthonormal, made so", lambda r: int(r.direction_mended)),
    ("label files in another axis order or direction, moved by whole voxels", lambda r: r.reoriented),
    ("label files with a slightly different header, taken voxel for voxel", lambda r: r.header_mended),
    ("label files on another grid, resampled (nearest neighbour)", lambda r: r.resampled),
    ("empty masks", lambda r: len(r.empty)),
    ("structures without counterpart, left out", lambda r: len(r.dropped)),
    ("voxels in two masks, given to the later label", lambda r: r.overlap_voxels),
    ("structures wholly covered by later ones", lambda r: len(r.covered)),
)
_EXAMPLES = 8


def write_report(folder: Path, records: Sequence[Record]) -> Path:
    """Writes ``report.csv`` and ``report.md``, which is returned."""
    with atomic_path(folder / "report.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(_row(Record("", "", "", "", ""))))
        writer.writeheader()
        writer.writerows(map(_row, records))
    path = folder / "report.md"
    with atomic_path(path) as temporary:
        temporary.write_text(_page(records), encoding="utf-8")
    return path


def _row(record: Record) -> dict[str, object]:
    return {
        "case": record.case,
        "split": record.part,
        "source_split": record.source_part,
        "patient": record.patient,
        "refused": record.refused,
        "shape": " x ".join(map(str, record.shape_ijk)),
        "spacing_mm": " x ".join(f"{s:.4g}" for s in record.spacing_ijk_mm),
        "structures": len(record.voxels),
        "labelled_voxels": sum(record.voxels.values()),
        "direction_mended": int(record.direction_mended),
        "reoriented": record.reoriented,
        "header_mended": record.header_mended,
        "resampled": record.resampled,
        "overlap_voxels": record.overlap_voxels,
        "empty": " ".join(record.empty),
        "dropped": " ".join(record.dropped),
        "covered": " ".join(record.covered),
        "seconds": f"{record.seconds:.1f}",
    }


def _page(records: Sequence[Record]) -> str:
    done = [record for record in records if not record.refused]
    labelled = [record for record in done if record.voxels]
    parts = Counter(record.part for record in done)
    seconds = sum(record.seconds for record in done)
    lines = [
        "# Conversion",
        "",
        f"{len(records)} cases: {len(done)} converted ({parts[TRAINING]} for training, {parts[TEST]} for testing), "
        f"{len(records) - len(done)} refused. {len(labelled)} have labels, {len(done) - len(labelled)} are images "
        f"alone. {seconds:.0f} s of work in all, {seconds / max(1, len(done)):.1f} s a case.",
        "",
        "## Damage",
        "",
        *_table(("what", "in all", "cases", "such as"), (_damage_row(*kind, records) for kind in DAMAGE)),
    ]
    if refused := [record for record in records if record.refused]:
        lines += ["", "## Refused", "", *(f"- `{record.case}`: {record.refused}" for record in refused)]
    if dropped := Counter(name for record in done for name in record.dropped):
        lines += ["", "## Left out: no counterpart among the 107", ""]
        lines += _table(("name", "cases"), sorted(dropped.items(), key=lambda entry: (-entry[1], entry[0])))
    found = Counter(name for record in done for name in record.voxels)
    lines += ["", f"## Structures: {len(found)} of {len(NAMES)}", ""]
    lines += _table(("label", "name", "cases"), ((v, name, found[name]) for v, name in enumerate(NAMES, start=1)))
    return "\n".join(lines) + "\n"


def _damage_row(title: str, count: Callable[[Record], int], records: Sequence[Record]) -> tuple:
    hit = [record.case for record in records if count(record)]
    examples = ", ".join([*hit[:_EXAMPLES], *(["…"] if len(hit) > _EXAMPLES else [])])
    return title, sum(map(count, records)), len(hit), examples


def _table(header: Sequence[str], rows: Iterable[Sequence]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows)]
