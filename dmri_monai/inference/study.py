"""Predictions for a whole study: a BIDS folder in, BIDS derivatives out, one scan after the other."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from dmri_monai.inference.ensemble import Group
from dmri_monai.inference.model import TrainedModel, load_model
from dmri_monai.inference.result import result_stem
from dmri_monai.inference.study_files import (
    is_done,
    meaning,
    places_of,
    relative_to,
    sources_digest,
    write_description,
)
from dmri_monai.io.json_sidecar import read_json
from dmri_monai.io.locking import locked
from dmri_monai.report import write_report
from dmri_monai.report.index import IndexRow, write_index
from dmri_monai.scan import Scan
from dmri_monai.signals import end_on_sigterm

__all__ = ["StudyOptions", "own_share", "predict_study"]

logger = logging.getLogger(__name__)

KILLED = (
    "out of memory: one of {} processes was killed; try fewer --workers or `--window 64 64 64`, "
    "then go on with --resume"
)


@dataclass(frozen=True)
class StudyOptions:
    """How a study is predicted.

    models: names of released models, or paths of weights.  device, ensemble, window: as of :func:`load_model` and
    :meth:`TrainedModel.predict`.  workers: processes on this machine.  resume: scans whose prediction by the same
    weights of the same gradient table is there are passed over.  reports: one HTML page per subject.
    """

    models: Sequence[str] = ("tissue",)
    device: str | None = None
    ensemble: Group | None = None
    window: tuple[int, int, int] | None = None
    workers: int = 1
    resume: bool = False
    overwrite: bool = False
    reports: bool = True
    reader: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of one scan: "predicted", "resumed" or "failed", and the message of its error or its warnings."""

    scan: str
    status: str
    messages: tuple[str, ...] = ()


def own_share(items: Sequence[Any], environment: Mapping[str, str] | None = None) -> list[Any]:
    """Every n-th of `items` for one of n processes: of torchrun (RANK, WORLD_SIZE) or a SLURM array; else all of them.

    >>> own_share("abcde", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_COUNT": "2"})
    ['b', 'd']
    """
    first, step = _share(os.environ if environment is None else environment)
    return list(items)[first::step]


def _share(known: Mapping[str, str]) -> tuple[int, int]:
    """Number of this process, from 0, and how many there are."""
    if "RANK" in known and "WORLD_SIZE" in known:
        return int(known["RANK"]), int(known["WORLD_SIZE"])
    if "SLURM_ARRAY_TASK_ID" in known and "SLURM_ARRAY_TASK_COUNT" in known:
        first = int(known["SLURM_ARRAY_TASK_ID"]) - int(known.get("SLURM_ARRAY_TASK_MIN", "0"))
        return first, int(known["SLURM_ARRAY_TASK_COUNT"])
    return 0, 1


def predict_study(
    items: Sequence[Mapping[str, Any]], source: Path, out: Path, options: StudyOptions
) -> list[Outcome]:
    """Predict the scans of `items` (each with `image`, and `subject` where known) of the data set `source` into `out`.

    Every map is written with its sidecar, whole or not at all; a scan that fails is reported, and the others are done.
    A page per subject and `index.html` show what is there, also from other processes and earlier runs.  Models are
    loaded once per process; ValueError or OSError before any work where one of them cannot be used, or another study
    is being written to `out`.
    """
    for name in options.models:
        _ = load_model(name, "cpu").task
    with locked(out, "a study", _share(os.environ)):
        write_description(out, source)
        todo = own_share([dict(item) for item in items])
        outcomes = list(_outcomes(todo, source, out, options))
        write_index(out / "index.html", _index_rows(out, outcomes), title=f"Predictions of {source.name}")
    return outcomes


def _outcomes(
    items: Sequence[dict[str, Any]], source: Path, out: Path, options: StudyOptions
) -> Iterator[Outcome]:
    """The scans one subject after the other, with a progress bar."""
    subjects = _by_subject(items)
    bar = tqdm(total=len(items), desc="scans", unit="scan", smoothing=0.1)
    if options.workers <= 1:
        models = _load(options)
        for group in subjects:
            yield from _shown(bar, _predict_subject(group, source, out, options, models))
        bar.close()
        return
    yield from _parallel(subjects, source, out, options, bar)
    bar.close()


def _parallel(
    subjects: Sequence[list[dict[str, Any]]], source: Path, out: Path, options: StudyOptions, bar: Any
) -> Iterator[Outcome]:
    """The subjects in processes of their own, which end with this one.

    MemoryError where one of them is killed from outside, which a lack of memory does.
    """
    context = get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(options.workers, context, _start_worker, (options,)) as pool:
        waiting = [pool.submit(_work, group, source, out, options) for group in subjects]
        try:
            for done in as_completed(waiting):
                yield from _shown(bar, done.result())
        except BrokenProcessPool:
            raise MemoryError(KILLED.format(options.workers)) from None
        except BaseException:  # such as Ctrl-C: leaving the pool would wait for all the scans
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            raise


def _shown(bar: Any, outcomes: Sequence[Outcome]) -> Iterator[Outcome]:
    for outcome in outcomes:
        bar.update()
        for message in outcome.messages:
            tqdm.write(f"{outcome.status}: {outcome.scan}: {message}")
        yield outcome


_models: list[TrainedModel] = []  # of a worker process


def _start_worker(options: StudyOptions) -> None:
    end_on_sigterm()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.workers))
    _models.extend(_load(options))


def _work(group: list[dict[str, Any]], source: Path, out: Path, options: StudyOptions) -> list[Outcome]:
    return _predict_subject(group, source, out, options, _models)


def _load(options: StudyOptions) -> list[TrainedModel]:
    return [load_model(name, options.device) for name in options.models]


def _by_subject(items: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(str(item.get("subject") or result_stem(Path(item["image"]))), []).append(item)
    return list(groups.values())


def _predict_subject(
    group: list[dict[str, Any]],
    source: Path,
    out: Path,
    options: StudyOptions,
    models: Sequence[TrainedModel],
) -> list[Outcome]:
    outcomes, cases, tables = [], [], []
    for item in group:
        path = Path(item["image"])
        places = {model.task.name: places_of(path, source, out, model.task.name) for model in models}
        try:
            if options.resume and all(is_done(places[m.task.name], path, m) for m in models):
                outcomes.append(Outcome(str(path), "resumed"))
                continue
            scan = Scan.read(path, **options.reader)
            sources = {
                "Sources": [f"bids:raw:{relative_to(path, source)}"],
                "SourcesSHA256": sources_digest(path),
            }
            warnings: dict[str, None] = {}
            for model in models:
                found = model.predict(scan, ensemble=options.ensemble, window=options.window)
                more = {**sources, **meaning(model.task.name)}
                overwrite = options.overwrite or options.resume
                found.write_to(places[model.task.name], more=more, overwrite=overwrite)
                warnings |= dict.fromkeys(found.warnings)
                cases.append(found.case())
                tables += [{"scan": path.name, "task": model.task.name, "warning": w} for w in found.warnings]
            outcomes.append(Outcome(str(path), "predicted", tuple(warnings)))
        except (ValueError, TypeError, OSError, RuntimeError, MemoryError) as error:
            logger.debug("failed: %s", path, exc_info=True)
            message = " ".join(str(error).split()) or type(error).__name__
            outcomes.append(Outcome(str(path), "failed", (message,)))
    if cases and options.reports:
        name = _subject_of(group[0])
        shown = {"Warnings": tables} if tables else {}
        write_report(out / f"{name}.html", cases, title=f"Predictions of {name}", tables=shown)
    return outcomes


def _subject_of(item: Mapping[str, Any]) -> str:
    stem = result_stem(Path(item["image"]))
    first = stem.split("_")[0]
    return first if first.startswith("sub-") else str(item.get("subject") or stem)


def _index_rows(out: Path, outcomes: Sequence[Outcome]) -> list[IndexRow]:
    """One row for each map in `out`, and for each scan that failed in this run."""
    rows = [
        IndexRow(Path(outcome.scan).name, "", "failed", outcome.messages, None)
        for outcome in outcomes
        if outcome.status == "failed"
    ]
    for sidecar in sorted(out.rglob("*.json")):
        record = read_json(sidecar) if sidecar.with_suffix(".nii.gz").is_file() else {}
        if "ModelSHA256" in record:
            page = out / f"{result_stem(sidecar.with_suffix('.nii.gz')).split('_')[0]}.html"
            link = page.name if page.is_file() else None
            warnings = tuple(map(str, listed)) if isinstance(listed := record.get("Warnings"), list) else ()
            rows.append(
                IndexRow(str(record.get("Scan")), str(record.get("Task")), "predicted", warnings, link)
            )
    return rows
