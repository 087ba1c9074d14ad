"""A checkpoint in MLflow's Model Registry: loaded as a pyfunc, and behind `mlflow models serve`."""

import json
import os
import urllib.request

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from dmri_monai.inference.model import predict
from dmri_monai.integrations.mlflow import register_model
from dmri_monai.integrations.registered_model import register_best
from dmri_monai.io import read_dwi


def ask(uri, row) -> np.ndarray:
    body = json.dumps({"dataframe_records": [row]}).encode()
    request = urllib.request.Request(uri + "/invocations", body, {"Content-Type": "application/json"})
    answer = json.loads(urllib.request.urlopen(request, timeout=300).read())
    return np.array(answer["predictions"][0]["prediction"])


@pytest.mark.slow
def test_registered_model_predicts_from_a_path_and_from_an_array(
    scan, checkpoint, mlflow_server, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    model = mlflow.pyfunc.load_model(register_model(checkpoint, "tissue", mlflow_server))
    expected = predict(scan, checkpoint=checkpoint).image.numpy()
    np.testing.assert_array_equal(model.predict([{"scan": str(scan)}])[0]["prediction"], expected)
    image, table = read_dwi(scan)
    row = {"image": image.numpy(), "bvals": table.bvals.numpy(), "bvecs": table.bvecs.numpy()}
    found = model.predict([{**row, "affine": image.affine.numpy()}])[0]["prediction"]
    np.testing.assert_array_equal(np.array(found), expected)


@pytest.mark.slow
def test_model_server_answers_a_request(scan, checkpoint, mlflow_server, serve_model, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.setenv("DMRI_MONAI_SCANS", str(scan.parent))
    uri = serve_model(register_model(checkpoint, "served", mlflow_server))
    expected = predict(scan, checkpoint=checkpoint).image.numpy()
    np.testing.assert_array_equal(ask(uri, {"scan": str(scan)}), expected)


def test_checkpoint_without_settings_is_refused(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(OSError, match="model.json"):
        register_model(tmp_path / "model.pt", "tissue", tmp_path)


def test_registering_leaves_the_store_of_the_process_alone(checkpoint, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = f"sqlite:///{tmp_path / 'mlruns.db'}"
    monkeypatch.chdir(tmp_path)
    MlflowClient(store).search_experiments()  # makes the store
    register_model(checkpoint, "tissue", store)
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_training_that_was_not_tracked_cannot_register_its_model(tmp_path):
    with pytest.raises(ValueError, match=r"not tracked .* `dmri-monai register-model"):
        register_best(tmp_path, "tissue")


def test_full_disk_enters_no_model(checkpoint, tmp_path, full_disk, monkeypatch):
    store = f"sqlite:///{tmp_path / 'mlruns.db'}"
    monkeypatch.chdir(tmp_path)
    MlflowClient(store).search_experiments()  # makes the store
    with full_disk, pytest.raises(OSError, match="mlruns|model|disk|large"):
        register_model(checkpoint, "tissue", store)
    assert list(MlflowClient(store).search_registered_models()) == []
