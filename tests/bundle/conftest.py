from collections.abc import Callable
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

from dmri_monai.phantom import write_dataset

BUNDLE = Path(__file__).parents[2] / "bundle"
TINY = {"spacing_mm": [6.0, 6.0, 6.0], "architecture": "plain", "network_options": {"filters": 4}}
SHORT = {"crop_size": [16, 16, 16], "max_epochs": 2, "cache_rate": 1.0}
TRAININGS = ("train", "pretrain")


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory) -> str:
    """Five small phantom subjects: three to train on, one to validate, one to test."""
    out = tmp_path_factory.mktemp("phantom") / "data"
    write_dataset(out, subjects=5, seed=0, shape=(20, 24, 20), spacing_mm=(6.0, 6.0, 6.0), progress=False)
    return str(out)


@pytest.fixture(scope="session")
def bundle() -> Path:
    return BUNDLE


@pytest.fixture(scope="session")
def prepare() -> Callable[..., ConfigWorkflow]:
    """Function that gives an initialised workflow of a bundle config; trainings are made small enough for a test.

    What inference and evaluation need to know of a model, they read from beside its weights.  objective: adds the file
    of that task.
    """

    def prepare(
        config: str, *overlays: str, objective: str | None = None, **override: object
    ) -> ConfigWorkflow:
        training = config in TRAININGS
        own = {"device": "cpu", "bundle_root": str(BUNDLE)}
        own |= {**TINY, **SHORT} if training else {}
        own |= {} if config == "inference" else {"mlflow": False}
        overlays = (
            overlays
            if objective is None
            else (str(BUNDLE / "configs" / "tasks" / f"{objective}.json"), *overlays)
        )
        workflow = ConfigWorkflow(
            config_file=[str(BUNDLE / "configs" / f"{config}.json"), *overlays],
            meta_file=str(BUNDLE / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="train" if training else "infer",
            **{**own, **override},
        )
        workflow.initialize()
        return workflow

    return prepare


@pytest.fixture(scope="session")
def pretrained(prepare, dataset_dir, tmp_path_factory) -> Path:
    """Folder of a finished tiny pretraining."""
    out = tmp_path_factory.mktemp("pretraining")
    prepare("pretrain", dataset_dir=dataset_dir, output_dir=str(out)).run()
    return out


@pytest.fixture(scope="session")
def trained(prepare, dataset_dir, pretrained, tmp_path_factory) -> Path:
    """Folder of a finished tiny fine-tuning, tracked in MLflow."""
    out = tmp_path_factory.mktemp("runs") / "training"
    weights = str(pretrained / "model.pt")
    prepare("train", dataset_dir=dataset_dir, output_dir=str(out), pretrained=weights, mlflow=True).run()
    return out
