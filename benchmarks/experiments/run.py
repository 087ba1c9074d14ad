"""Run arms: train through `train.json` (after `pretrain.json`), test through `evaluate.json`, one line each."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

import dmri_monai
from benchmarks.experiments.arms import Arm, Budget, Pretraining, digest
from benchmarks.experiments.cohorts import Cohort
from benchmarks.experiments.results import Results
from dmri_monai.inference.spec import ModelSpec
from dmri_monai.io.datasets import subjects

__all__ = ["Runner", "config_keys", "objective", "workflow"]

BUNDLE = Path(__file__).parents[2] / "bundle"
# names that settings have in the stored lines -> where they stand in the configs of today
NEW_NAMES = {"too_few": "insufficient_directions", "loss": "objective::loss"}
VALIDATIONS = 3  # per training
WORKERS = 8  # beside a GPU, which else waits for the fit of harmonics
NEVER = 10**6  # epochs: no early stopping, so that budgets are kept
SEARCH_SEED = 1000  # of trials of learning rates; no arm has it


def config_keys(config: str) -> set[str]:
    """Keys that :func:`workflow` takes: those of a bundle config, its task and, where it trains, those of a model."""
    own = {"task", *json.loads((BUNDLE / "configs" / f"{config}.json").read_text(encoding="utf-8"))}
    return own if config == "evaluate" else own | set(ModelSpec.model_fields) | set(NEW_NAMES)


def objective(task: str) -> dict[str, Any]:
    """The objective of `task` as its config has it: loss, metrics, columns."""
    path = BUNDLE / "configs" / "tasks" / f"{task}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["objective"]
    return content


def workflow(config: str, **settings: Any) -> ConfigWorkflow:
    """Initialised workflow of a bundle config with `settings` laid over it; `task` brings its objective."""
    unknown = sorted(set(settings) - config_keys(config))
    if unknown:
        raise ValueError(f"{config}.json has no key {unknown[0]!r}")
    files = [BUNDLE / "configs" / f"{config}.json"]
    if "task" in settings:
        files.append(BUNDLE / "configs" / "tasks" / f"{settings.pop('task')}.json")
    training = config != "evaluate"
    made = ConfigWorkflow(
        config_file=[str(file) for file in files],
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train" if training else "infer",
        bundle_root=str(BUNDLE),
        mlflow=False,
        **{NEW_NAMES.get(name, name): value for name, value in settings.items()},
    )
    made.initialize()
    return made


@dataclass(frozen=True)
class Runner:
    """Where data, checkpoints and results go, and where to compute."""

    work: Path
    results: Results
    device: str = "cpu"

    def run(self, arms: Iterable[Arm]) -> list[dict[str, Any]]:
        """The lines of `arms`; those that are not there yet are run and added."""
        return [self.line(arm) for arm in arms]

    def line(self, arm: Arm) -> dict[str, Any]:
        """The line of one arm, from the file or newly run."""
        known = self.results.get(arm.key)
        if known is not None:
            return known
        line: dict[str, Any] = json.loads(json.dumps(self._run(arm)))  # as the file will give it back
        self.results.add(line)
        print(json.dumps({k: line[k] for k in ("labels", "seed", "validation", "wall_seconds")}), flush=True)
        return line

    def tuned(self, arm: Arm, rates: Sequence[float]) -> Arm:
        """`arm` with the one of `rates` that validates best, each tried once with a seed of its own."""
        if len(rates) == 1:
            return arm.with_settings(learning_rate=rates[0])
        trials = [replace(arm, seed=SEARCH_SEED).searched(rate) for rate in rates]
        values = [line["validation"] for line in self.run(trials)]
        choose = min if objective(arm.settings["task"])["lower_is_better"] else max
        return arm.with_settings(learning_rate=rates[values.index(choose(values))])

    def _run(self, arm: Arm) -> dict[str, Any]:
        start = time.perf_counter()
        settings = dict(arm.settings)
        if arm.pretraining is not None:
            settings["pretrained"] = str(self._pretrained(arm.pretraining, settings, arm.seed))
        folder = self.work / "arms" / arm.key
        share = arm.validation_share
        common = {"train_subjects": arm.train_subjects, "split": {"train": 1 - share, "val": share}}
        made = self._train("train", arm.cohort, {**settings, **common}, arm.budget, arm.seed, folder)
        tests = {
            cohort.name: self._test(cohort, settings, folder / "model.pt", folder / cohort.name)
            for cohort in arm.tests
        }
        return {
            "key": arm.key,
            "experiment": arm.experiment,
            "labels": dict(arm.labels),
            "seed": arm.seed,
            **made,
            "tests": tests,
            "learning_rate": settings.get("learning_rate"),
            "settings": dict(arm.settings),
            "budget": asdict(arm.budget),
            "pretraining": arm.pretraining and asdict(arm.pretraining),
            "train_subjects": arm.train_subjects,
            "wall_seconds": round(time.perf_counter() - start, 1),
            "device": self.device,
            "threads": torch.get_num_threads(),
            "versions": {"dmri_monai": dmri_monai.__version__, "torch": torch.__version__},
        }

    def _pretrained(self, step: Pretraining, settings: Mapping[str, Any], seed: int) -> Path:
        """Checkpoint of `step` for the network of `settings`; arms of other tasks and labels share it."""
        own = {key: value for key, value in settings.items() if key in MODEL_KEYS} | dict(step.settings)
        key = digest([asdict(step), own, seed])
        folder = self.work / "pretraining" / key
        done = folder / "done.json"
        if not done.is_file():
            made = self._train("pretrain", step.cohort, own, step.budget, seed, folder)
            done.write_text(json.dumps(made), encoding="utf-8")
        return folder / "model.pt"

    def _train(
        self, config: str, cohort: Cohort, settings: dict[str, Any], budget: Budget, seed: int, folder: Path
    ) -> dict[str, Any]:
        own = {
            "batch_size": 1, "cache_rate": 1.0, "patience": NEVER, "overwrite": True, "device": self.device,
            "split": {"train": 0.8, "val": 0.2}, "num_workers": WORKERS if "cuda" in self.device else 0,
            **settings, "seed": seed,
            "dataset_dir": str(cohort.write(self.work / "data")), "output_dir": str(folder),
        }  # fmt: skip
        per_epoch = self._rehearse(config, own) if budget.unit == "seconds" else 0.0
        epochs = budget.epochs(_steps(own), per_epoch)
        made = workflow(config, **own, max_epochs=epochs, val_interval=max(1, epochs // VALIDATIONS))
        clock = _attach_clock(made)
        made.run()
        evaluator = made.parser.get_parsed_content("validate#evaluator")
        network = made.parser.get_parsed_content("network")
        return {
            "validation": round(float(evaluator.state.best_metric), 5),
            "n_parameters": sum(p.numel() for p in network.parameters() if p.requires_grad),
            "epochs": epochs,
            "steps": clock["steps"],
            "train_seconds": round(clock["seconds"], 2),
        }

    def _rehearse(self, config: str, own: Mapping[str, Any]) -> float:
        """Seconds of a whole epoch after the first, which fills the cache."""
        made = workflow(config, **{**own, "output_dir": own["output_dir"] + "-rehearsal"}, max_epochs=4,
                        val_interval=NEVER)  # fmt: skip
        clock = _attach_clock(made, skip_epochs=1)
        made.run()
        return clock["seconds"] / 3

    def _test(
        self, cohort: Cohort, settings: Mapping[str, Any], checkpoint: Path, folder: Path
    ) -> dict[str, Any]:
        """Column of the metrics -> values of the subjects, in their order; None where undefined."""
        known = config_keys("evaluate")
        own = {key: value for key, value in settings.items() if key in known}
        made = workflow(
            "evaluate",
            **own,
            dataset_dir=str(cohort.write(self.work / "data")),
            checkpoint=str(checkpoint),
            output_dir=str(folder),
            split={"test": 1.0},
            device=self.device,
        )
        made.parser.get_parsed_content("evaluator").run()  # without shuffled b-vectors and clustering
        with (folder / "metrics.csv").open(encoding="utf-8") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: row["subject"])
        names = [name for name in rows[0] if name != "subject"]
        return {name: [_number(row[name]) for row in rows] for name in names}


MODEL_KEYS = {
    "architecture", "size", "network_options", "spacing_mm", "shells", "shell_tolerance", "l_max",
    "order_scale", "missing", "too_few", "n_directions", "crop_size", "learning_rate",
}  # fmt: skip


def _steps(own: Mapping[str, Any]) -> int:
    """Steps of one epoch."""
    learners = subjects(own["dataset_dir"], own["split"], own["seed"])["train"]
    return math.ceil((own.get("train_subjects") or len(learners)) / own["batch_size"])


def _number(text: str) -> float | None:
    value = float(text) if text else float("nan")
    return round(value, 5) if value == value else None


def _attach_clock(made: ConfigWorkflow, skip_epochs: int = 0) -> dict[str, Any]:
    """Count steps and the seconds between the first and last step of every epoch: without validation."""
    from ignite.engine import Events

    trainer = made.parser.get_parsed_content("train#trainer")
    clock: dict[str, Any] = {"seconds": 0.0, "steps": 0, "start": 0.0, "last": 0.0}

    def start(engine: Any) -> None:
        clock["start"] = clock["last"] = time.perf_counter()

    def step(engine: Any) -> None:
        now = time.perf_counter()
        if engine.state.epoch > skip_epochs:
            clock["seconds"] += now - clock["last"]
        clock["last"] = now
        clock["steps"] += 1

    trainer.add_event_handler(Events.EPOCH_STARTED, start)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, step)
    return clock
