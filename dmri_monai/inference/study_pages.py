"""The pages of a predicted study, made from its files alone: one for each subject, and the index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmri_monai.inference.result import result_stem
from dmri_monai.inference.study_files import places_of, relative_to
from dmri_monai.io import read_nifti
from dmri_monai.io.json_sidecar import read_json
from dmri_monai.report import Case, write_report
from dmri_monai.report.index import IndexRow, write_index
from dmri_monai.tasks.registry import TASKS, find_task

__all__ = ["page_of", "write_study_index", "write_subject_page"]


def page_of(scan: Path, source: Path, out: Path) -> Path:
    """The page of the subject of `scan`: of its BIDS name, else of the folder it lies in, else of its own name."""
    return out / f"{_subject(relative_to(scan, source))}.html"


def _subject(relative: str) -> str:
    path = Path(relative)
    stem = result_stem(path)
    return next(
        (p for p in (stem.split("_")[0], *path.parts) if p.startswith("sub-")),
        path.parts[0] if len(path.parts) > 1 else stem,
    )


def write_subject_page(scans: Iterable[Path], source: Path, out: Path, reader: Mapping[str, Any]) -> None:
    """A page of every prediction there is of `scans`, which belong to one subject; none where there is none.

    reader: options of :func:`dmri_monai.io.read_dwi`, with which the scans were read.
    """
    paths = list(scans)
    cases: list[Case] = []
    warned: list[dict[str, str]] = []
    for path in paths:
        for task in TASKS:
            record = _record(places_of(path, source, out, task))
            if record:
                cases.append(_case(path, source, out, task, record, reader))
                warned += [{"scan": result_stem(path), "task": task, "warning": w} for w in _warnings(record)]
    if cases:
        page = page_of(paths[0], source, out)
        tables = {"Warnings": _merged(warned)} if warned else {}
        write_report(page, cases, title=f"Predictions of {page.stem}", tables=tables)


def _record(places: Mapping[str, Path]) -> dict[str, Any]:
    """The sidecar of the prediction of a task; empty where it is not there, whole."""
    if not (places["prediction"].is_file() and places["sidecar"].is_file()):
        return {}
    record = read_json(places["sidecar"])
    return record if {"ModelSHA256", "Task"} <= record.keys() else {}


def _warnings(record: Mapping[str, Any]) -> list[str]:
    listed = record.get("Warnings")
    return [str(warning) for warning in listed] if isinstance(listed, list) else []


def _case(
    path: Path, source: Path, out: Path, name: str, record: Mapping[str, Any], reader: Mapping[str, Any]
) -> Case:
    task, places = find_task(name), places_of(path, source, out, name)
    values = read_nifti(places["prediction"]).as_tensor()
    spread = places["uncertainty"]
    deviation = record.get("WindowDeviation")
    metrics = {"Deviation of windows": float(deviation)} if isinstance(deviation, int | float) else {}
    return Case(
        f"{result_stem(path)}: {task.title}",
        path,
        prediction=task.output.shown_label(values),
        class_names=dict(enumerate(task.class_names, start=1)),
        metrics=metrics,
        maps={"Uncertainty": read_nifti(spread)} if spread.is_file() else {},
        reader=reader,
    )


def _merged(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """One row for each warning of a scan, with all the tasks that gave it."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        found.setdefault((row["scan"], row["warning"]), []).append(row["task"])
    return [
        {"scan": scan, "task": ", ".join(tasks), "warning": text} for (scan, text), tasks in found.items()
    ]


@dataclass
class _Scan:
    """What there is of one scan: its tasks, its warnings with the tasks that gave them."""

    tasks: list[str] = field(default_factory=list)
    warnings: dict[str, list[str]] = field(default_factory=dict)


def write_study_index(
    out: Path, source: Path, scans: Iterable[Path], tasks: Sequence[str], failures: Mapping[str, str]
) -> None:
    """`index.html`: one row for each scan with a map in `out`, and for those of `scans` that lack one.

    tasks: what was to be predicted.  failures: path of a scan -> its error in this run.
    """
    found: dict[str, _Scan] = {}
    for sidecar in sorted(out.rglob("*.json")):
        places = {"prediction": sidecar.with_suffix(".nii.gz"), "sidecar": sidecar}
        if record := _record(places):
            known = found.setdefault(_source_of(record), _Scan())
            known.tasks.append(str(record.get("Task")))
            for warning in _warnings(record):
                known.warnings.setdefault(warning, []).append(known.tasks[-1])
    failed = {relative_to(Path(path), source): message for path, message in failures.items()}
    rows = []
    for name in dict.fromkeys([*failed, *(relative_to(path, source) for path in scans), *found]):
        rows += _rows(name, found.get(name, _Scan()), tasks, failed.get(name), out)
    write_index(out / "index.html", rows, title=f"Predictions of {source.resolve().name}")


def _rows(name: str, scan: _Scan, tasks: Sequence[str], failure: str | None, out: Path) -> list[IndexRow]:
    page = out / f"{_subject(name)}.html"
    link, shown = page.name if page.is_file() else None, Path(name).name
    rows = []
    if failure is not None:
        rows.append(IndexRow(shown, "", "failed", (failure,), None))
    elif missing := [task for task in tasks if task not in scan.tasks]:
        rows.append(IndexRow(shown, ", ".join(missing), "not there", (), None))
    if scan.tasks:
        notes = [
            text if len(given) == len(scan.tasks) else f"{', '.join(given)}: {text}"
            for text, given in scan.warnings.items()
        ]
        rows.append(IndexRow(shown, ", ".join(scan.tasks), "predicted", tuple(notes), link))
    return rows


def _source_of(record: Mapping[str, Any]) -> str:
    """The scan a map was made from, relative to the study."""
    listed = record.get("Sources")
    first = listed[0] if isinstance(listed, list) and listed else record.get("Scan")
    return str(first).removeprefix("bids:raw:")
