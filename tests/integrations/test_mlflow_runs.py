"""The table of MLflow runs."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient

from dmri_monai.integrations.mlflow_runs import list_runs, mark_dead, runs_table, store_uri


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with a finished run, and a later one that was killed."""
    folder = tmp_path_factory.mktemp("store")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlruns.db'}")
    experiment = client.create_experiment("tissue", artifact_location=str(folder / "artifacts"))
    done = client.create_run(experiment, start_time=1_000_000, run_name="training-1")
    client.log_metric(done.info.run_id, "val_dice", 0.8125)
    client.set_terminated(done.info.run_id, "FINISHED", end_time=1_000_000 + 150_000)
    client.create_run(experiment, start_time=2_000_000, run_name="training-2")
    return folder


def test_runs_are_listed_newest_first_with_status_length_and_metrics(store):
    runs = list_runs(store)
    assert [(r.name, r.status, r.experiment) for r in runs] == [
        ("training-2", "RUNNING", "tissue"),
        ("training-1", "FINISHED", "tissue"),
    ]
    assert runs[1].minutes == pytest.approx(2.5)
    assert runs[1].metrics == {"val_dice": 0.8125}


def test_table_has_a_line_a_run(store):
    lines = runs_table(list_runs(store)).splitlines()
    assert lines[0].split() == ["RUN", "NAME", "STATUS", "STARTED", "MINUTES", "METRICS"]
    assert "val_dice=0.8125" in lines[2]
    assert len(lines) == 3


def test_table_of_an_empty_store_says_so():
    assert runs_table([]) == "no runs"


def test_a_finished_run_cannot_be_marked_dead(store):
    with pytest.raises(ValueError, match="is FINISHED, only a RUNNING run"):
        mark_dead(list_runs(store)[1].run_id, store)


def test_an_unknown_run_is_refused(store):
    with pytest.raises(ValueError, match="run xyz: 0 runs"):
        mark_dead("xyz", store)


def test_a_killed_run_is_settled_by_the_beginning_of_its_id(store):
    killed = list_runs(store)[0].run_id
    assert mark_dead(killed[:8], store) == killed
    settled = {r.run_id: r.status for r in list_runs(store)}
    assert settled[killed] == "FAILED"


def test_a_store_that_does_not_exist_is_not_created(tmp_path):
    with pytest.raises(FileNotFoundError, match="no MLflow store at"):
        list_runs(f"sqlite:///{tmp_path / 'none.db'}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "mlruns.db").write_text("something else")
    with pytest.raises(ValueError, match="not an sqlite file"):
        store_uri(tmp_path)


def test_a_server_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(OSError, match="MLflow store http://127.0.0.1:9: "):
        list_runs("http://127.0.0.1:9")


def test_the_environment_names_the_store_if_nothing_else_does(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert store_uri() == "http://127.0.0.1:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(ValueError, match="no MLflow store given"):
        store_uri()
