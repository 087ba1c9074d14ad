"""MLflowRun on a bare engine: how runs end, what they record, where they nest.  The bundle's use: tests/bundle."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ignite.engine import Engine, Events
from mlflow import MlflowClient

import dmri_monai.signals
from dmri_monai.integrations.mlflow_runs import list_runs
from dmri_monai.integrations.tracking import MLflowRun
from dmri_monai.io.data_record import data_record

SLEEPER = """
import sys, time
from ignite.engine import Engine
from dmri_monai.integrations.mlflow_runs import list_runs
from dmri_monai.integrations.tracking import MLflowRun
engine = Engine(lambda *_: time.sleep(0.05))
MLflowRun("training", sys.argv[1], {}).attach(engine)
engine.run(range(100), max_epochs=100)
"""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """A store that MLflow has made, which takes it a second."""
    path = tmp_path_factory.mktemp("store") / "mlruns.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _store_is_there(tmp_path, empty_store):
    """The default store of the runs in `tmp_path`; one elsewhere is still made by the run itself."""
    shutil.copy(empty_store, tmp_path / "mlruns.db")


def track(out, **settings) -> MLflowRun:
    """The MLflow run of an engine of one iteration."""
    engine, run = Engine(lambda *_: None), MLflowRun("training", out, {}, **settings)
    run.attach(engine)
    engine.run([0])
    return run


def recorded(out):
    """The run that `out` names, from its store."""
    record = json.loads((out / "mlflow_run.json").read_text())
    return MlflowClient(record["tracking_uri"]).get_run(record["run_id"])


@pytest.fixture
def scan(tmp_path) -> Path:
    (tmp_path / "sub-01_dwi.bval").write_text("0 1000\n")
    (tmp_path / "sub-01_dwi.bvec").write_text("0 1\n0 0\n0 0\n")
    return tmp_path / "sub-01_dwi.nii.gz"


@pytest.fixture
def usual_handlers():
    """Those of a process of its own, however the tests were started."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


ENDINGS = {"SIGTERM": signal.SIGTERM, "Ctrl-C": signal.SIGINT}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_signal_in_a_step_marks_the_run_failed(tmp_path, ending, usual_handlers):
    def step(*_):
        if ending is signal.SIGTERM:
            assert signal.getsignal(ending) is dmri_monai.signals._end, "another one would end all tests"
        signal.raise_signal(ending)

    engine = Engine(step)
    MLflowRun("training", tmp_path / "training", {}).attach(engine)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        engine.run([0])
    assert recorded(tmp_path / "training").info.status == "FAILED"


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_signal_marks_the_run_of_a_process_failed(tmp_path, ending):
    out = tmp_path / "training"
    process = subprocess.Popen([sys.executable, "-c", SLEEPER, str(out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "mlflow_run.json").is_file():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(ending)
    assert process.wait(timeout=60) != 0
    assert recorded(out).info.status == "FAILED"


def test_earlier_handler_of_sigterm_is_back_after_the_run(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    track(tmp_path / "training")
    assert signal.getsignal(signal.SIGTERM) is before


def test_folds_are_nested_in_one_parent(tmp_path):
    runs = [track(tmp_path / f"fold{i}", parent="weninger-tissue") for i in range(2)]
    parents = {recorded(run.output_dir).data.tags["mlflow.parentRunId"] for run in runs}
    client = MlflowClient(runs[0].tracking_uri)
    assert len(parents) == 1
    assert client.get_run(parents.pop()).info.run_name == "weninger-tissue"


def test_run_without_folds_has_no_parent(tmp_path):
    track(tmp_path / "training")
    assert "mlflow.parentRunId" not in recorded(tmp_path / "training").data.tags


def test_run_records_scans_and_the_hash_of_their_tables(tmp_path, scan):
    run = track(tmp_path / "training", data={"train": [{"image": str(scan)}]})
    client = MlflowClient(run.tracking_uri)
    path = client.download_artifacts(run.run_id, "data.json", str(tmp_path))
    parts = json.loads(Path(path).read_text())["parts"]
    bval = hashlib.sha256(b"0 1000\n").hexdigest()
    assert parts["train"][0]["scan"] == scan.name
    assert parts["train"][0]["table"]["sub-01_dwi.bval"] == bval


def test_data_digest_changes_with_a_table(scan):
    before = data_record({"train": [{"image": scan}]})["digest"]
    (scan.parent / "sub-01_dwi.bval").write_text("0 2000\n")
    assert data_record({"train": [{"image": scan}]})["digest"] != before


def test_run_records_the_git_revision(tmp_path, monkeypatch):
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.chdir(repository)
    identity = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a"}
    environment = {**os.environ, **identity, "GIT_COMMITTER_EMAIL": "a@b"}
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run(["git", "commit", "-qm", "x", "--allow-empty"], check=True, env=environment)
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    track(tmp_path / "training")
    assert recorded(tmp_path / "training").data.tags["mlflow.source.git.commit"] == head.stdout.strip()


@pytest.mark.slow
def test_run_on_a_real_server_has_its_files_and_data(tmp_path, scan, mlflow_server):
    picture = tmp_path / "validation.png"
    picture.write_bytes(b"picture")
    settings = {"tracking_uri": mlflow_server, "artifacts": [str(picture)], "parent": "folds"}
    run = track(tmp_path / "training", data={"train": [{"image": str(scan)}]}, **settings)
    client = MlflowClient(mlflow_server)
    assert client.get_run(run.run_id).info.status == "FINISHED"
    names = {file.path for file in client.list_artifacts(run.run_id)}
    assert names == {"config.json", "data.json", "validation.png"}
    assert [r.name for r in list_runs(mlflow_server)].count("folds") == 1


@pytest.mark.slow
def test_server_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(OSError, match="http://127.0.0.1:9"):
        track(tmp_path / "training", tracking_uri="http://127.0.0.1:9")


def test_store_that_fails_in_between_ends_the_tracking_but_not_the_training(tmp_path, caplog):
    engine, run = Engine(lambda *_: None), MLflowRun("training", tmp_path / "training", {})
    run.attach(engine)
    engine.add_event_handler(Events.EPOCH_STARTED(once=2), lambda: (tmp_path / "mlruns.db").write_bytes(b""))
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: engine.state.metrics.update(loss=1.0))
    engine.run([0], max_epochs=4)
    assert engine.state.epoch == 4
    assert [r.getMessage().split(" (")[0] for r in caplog.records if r.name.endswith("tracking")] == [
        f"MLflow store sqlite:///{tmp_path / 'mlruns.db'} is lost"
    ]


def test_error_of_the_training_is_raised_though_the_store_is_lost(tmp_path):
    def step(*_):
        (tmp_path / "mlruns.db").write_bytes(b"")
        raise RuntimeError("out of luck")

    engine = Engine(step)
    MLflowRun("training", tmp_path / "training", {}).attach(engine)
    with pytest.raises(RuntimeError, match="out of luck"):
        engine.run([0])


def test_resumed_training_finds_the_store_that_it_began_in(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere' / 'store.db'}")
    run = track(tmp_path / "training")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert track(tmp_path / "training", resume=True).run_id == run.run_id
    assert track(tmp_path / "training").run_id != run.run_id  # a new one does not


@pytest.mark.slow
def test_training_outlives_its_server_and_goes_on_in_the_same_run(tmp_path, monkeypatch, stoppable_server):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    out, settings = tmp_path / "training", {"tracking_uri": stoppable_server.uri}
    engine, run = Engine(lambda *_: None), MLflowRun("training", out, {}, **settings)
    run.attach(engine)
    engine.add_event_handler(Events.EPOCH_STARTED(once=2), stoppable_server.stop)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: engine.state.metrics.update(loss=1.0))
    engine.run([0], max_epochs=3)
    assert engine.state.epoch == 3
    stoppable_server.start()
    assert recorded(out).info.status == "RUNNING"
    assert track(out, resume=True, **settings).run_id == run.run_id
    assert recorded(out).info.status == "FINISHED"
