import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

import dmri_monai.integrations

BUNDLE = Path(__file__).parents[2] / "bundle"


@pytest.fixture(scope="module")
def run(trained):
    """The MLflow run of the tiny fine-tuning, and its client."""
    record = json.loads((trained / "mlflow_run.json").read_text())
    client = MlflowClient(record["tracking_uri"])
    return client.get_run(record["run_id"]), client


def test_store_is_an_sqlite_file_beside_the_output_folder(run, trained):
    assert (trained.parent / "mlruns.db").is_file()


def test_finished_training_is_a_finished_run(run):
    assert run[0].info.status == "FINISHED"


def test_metrics_are_logged_for_every_epoch(run):
    for name in ("train_loss", "val_dice"):
        history = run[1].get_metric_history(run[0].info.run_id, name)
        assert sorted(point.step for point in history) == [1, 2], name


def test_configuration_with_overrides_picture_and_model_are_artifacts(run, trained):
    names = {artifact.path for artifact in run[1].list_artifacts(run[0].info.run_id)}
    assert names == {"config.json", "data.json", "model.pt", "validation.png"}
    path = run[1].download_artifacts(run[0].info.run_id, "config.json", str(trained))
    config = json.loads(Path(path).read_text())
    assert config["crop_size"] == [16, 16, 16]
    assert config["network_options"] == {"filters": 4}


def test_new_training_is_a_new_run(run, prepare, dataset_dir, trained):
    out = trained.parent / "second"
    prepare("train", dataset_dir=dataset_dir, output_dir=str(out), mlflow=True, max_epochs=1).run()
    record = json.loads((out / "mlflow_run.json").read_text())
    assert record["run_id"] != run[0].info.run_id
    assert record["run_name"] != run[0].info.run_name


def test_best_model_is_registered_at_the_end(prepare, dataset_dir, trained):
    out = trained.parent / "registered"
    settings = {"dataset_dir": dataset_dir, "output_dir": str(out), "max_epochs": 1}
    prepare("train", **settings, mlflow=True, registered_model="tissue").run()
    record = json.loads((out / "mlflow_run.json").read_text())
    client = MlflowClient(record["tracking_uri"])
    (version,) = client.search_model_versions("name = 'tissue'")
    assert version.run_id == record["run_id"]
    assert client.get_run(record["run_id"]).info.status == "FINISHED"


def test_exception_marks_the_run_failed_and_is_raised(prepare, dataset_dir, trained):
    out = trained.parent / "failing"
    workflow = prepare("train", dataset_dir=dataset_dir, output_dir=str(out), mlflow=True)

    def broken(*args):
        raise RuntimeError("out of luck")

    workflow.trainer.loss_function = broken
    with pytest.raises(RuntimeError) as error:
        workflow.run()
    assert "out of luck" in str(error.value.__cause__)
    record = json.loads((out / "mlflow_run.json").read_text())
    failed = MlflowClient(record["tracking_uri"]).get_run(record["run_id"])
    assert failed.info.status == "FAILED"
    assert "out of luck" in failed.data.tags["error"]


def test_training_without_tracking_imports_no_mlflow(prepare, dataset_dir, tmp_path, monkeypatch):
    """What speaks to MLflow is imported anew, and cannot be, nor MLflow itself."""
    monkeypatch.setattr(dmri_monai, "integrations", dmri_monai.integrations)  # as it was, after the test
    speaking = ("mlflow", "dmri_monai.integrations")
    for name in [n for n in sys.modules if n.startswith(speaking)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    own = {"dataset_dir": dataset_dir, "max_epochs": 1, "train_subjects": 1}
    try:
        with pytest.raises(RuntimeError) as control:
            prepare("train", **own, output_dir=str(tmp_path / "tracked"), mlflow=True).run()
        prepare("train", **own, output_dir=str(tmp_path / "untracked"), mlflow=False).run()
    finally:  # no second copy for the tests that follow
        for name in [n for n in sys.modules if n.startswith(speaking)]:
            del sys.modules[name]
    assert any("mlflow" in str(cause) for cause in causes_of(control.value))
    assert (tmp_path / "untracked" / "model.pt").is_file()


def causes_of(error):
    """`error` and what led to it: MONAI wraps what its expressions raise."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found[1:] or found


@pytest.mark.slow
def test_training_without_tracking_needs_no_mlflow(dataset_dir, tmp_path):
    """In a process in which MLflow cannot be imported."""
    settings = {"dataset_dir": dataset_dir, "output_dir": str(tmp_path), "mlflow": False, "device": "cpu"}
    settings |= {"max_epochs": 1, "train_subjects": 1, "crop_size": [16, 16, 16], "spacing_mm": [6, 6, 6]}
    settings |= {"architecture": "plain", "network_options": {"filters": 4}}
    code = (
        "import sys; sys.modules['mlflow'] = None\n"
        "from monai.bundle import run\n"
        f"run('training', config_file={str(BUNDLE / 'configs' / 'train.json')!r}, **{settings!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=BUNDLE.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "model.pt").is_file()


def test_training_that_was_killed_before_its_model_was_registered_only_registers_it(
    prepare, dataset_dir, tmp_path
):
    """Early stopping had ended it: nothing is left to train."""
    out = tmp_path / "ended"
    settings = {"dataset_dir": dataset_dir, "output_dir": str(out), "learning_rate": 0.0, "patience": 1}
    prepare("train", **settings, mlflow=True, max_epochs=9).run()
    before = {name: (out / name).read_bytes() for name in ("last.pt", "model.pt", "model.json")}
    resumed = {**settings, "mlflow": True, "max_epochs": 9, "resume": True, "registered_model": "ended"}
    prepare("train", **resumed).run()
    assert {name: (out / name).read_bytes() for name in before} == before
    record = json.loads((out / "mlflow_run.json").read_text())
    client = MlflowClient(record["tracking_uri"])
    (version,) = client.search_model_versions("name = 'ended'")
    assert version.run_id == record["run_id"]
    assert client.get_run(version.run_id).info.status == "FINISHED"
