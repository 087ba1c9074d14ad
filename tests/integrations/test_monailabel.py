"""Studies folders and bundles for MONAI Label, and a real server that infers and trains (slow, own environment)."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from dmri_monai.inference.model import load_model, predict
from dmri_monai.integrations.monailabel import publish, write_label_bundle, write_studies
from dmri_monai.io import read_dwi
from dmri_monai.phantom import write_dataset
from tests.small_models import save_model

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-label" / "bin" / "python"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three small heads with labels."""
    out = tmp_path_factory.mktemp("label") / "data"
    write_dataset(out, subjects=3, seed=0, shape=(20, 24, 20), spacing_mm=(6.0, 6.0, 6.0), progress=False)
    return out


def test_study_is_a_scan_whose_gradient_table_is_found(data, tmp_path):
    write_studies(data, tmp_path)
    image, table = read_dwi(tmp_path / "sub-01_dwi.nii.gz")
    assert len(image) == len(table)


@pytest.mark.parametrize("preview", ["b0", "fa"])
def test_every_scan_has_a_three_dimensional_preview(data, tmp_path, preview):
    write_studies(data, tmp_path, preview=preview)
    scan, shown = (nibabel.load(tmp_path / f"sub-01_{kind}.nii.gz") for kind in ("dwi", preview))
    assert shown.shape == scan.shape[:3]
    np.testing.assert_allclose(shown.affine, scan.affine, atol=1e-5)


def test_laying_out_twice_changes_nothing(data, tmp_path):
    assert write_studies(data, tmp_path) == write_studies(data, tmp_path)


def test_study_of_another_scan_is_not_replaced(data, tmp_path):
    (tmp_path / "sub-01_dwi.nii.gz").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="in the way"):
        write_studies(data, tmp_path)
    assert (tmp_path / "sub-01_dwi.nii.gz").read_bytes() == b"mine"


def test_labels_are_copies_so_that_a_correction_leaves_the_original(data, tmp_path):
    write_studies(data, tmp_path, labels="dseg")
    label = tmp_path / "labels" / "final" / "sub-01_dwi.nii.gz"
    assert label.is_file()
    assert not label.is_symlink()


def test_corrected_label_survives_laying_out_again(data, tmp_path):
    write_studies(data, tmp_path, labels="dseg")
    label = tmp_path / "labels" / "final" / "sub-01_dwi.nii.gz"
    label.write_bytes(b"corrected")
    write_studies(data, tmp_path, labels="dseg")
    assert label.read_bytes() == b"corrected"


def test_bundle_names_the_classes_of_its_task(tmp_path):
    lesion = save_model(tmp_path / "model.pt", "lesion")
    metadata = json.loads(
        (write_label_bundle(lesion, tmp_path / "app") / "configs/metadata.json").read_text()
    )
    names = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert names == {"0": "background", "1": "lesion"}


def test_model_for_any_protocol_is_served_and_trained_again(data, tmp_path):
    checkpoint = save_model(tmp_path / "model.pt", architecture="any")
    app = write_label_bundle(checkpoint, tmp_path / "app")
    served = load_model(app / "models" / "model.pt", "cpu")
    assert served.spec.architecture == "any"
    parser = ConfigParser()
    parser.read_config(app / "configs" / "inference.json")
    parser["bundle_root"], parser["device"] = str(app), "cpu"
    steps = parser.get_parsed_content("preprocessing")
    item = steps({"image": str(data / "sub-01/dwi/sub-01_dwi.nii.gz"), "image_path": "a request's own"})
    assert item["image"].shape[0] == served.spec.in_channels
    assert item["image_path"] == "a request's own"


def test_folder_that_is_not_empty_is_left_alone(checkpoint, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        write_label_bundle(checkpoint, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_full_disk_leaves_no_bundle(checkpoint, tmp_path, full_disk):
    with full_disk, pytest.raises(OSError, match="app"):
        write_label_bundle(checkpoint, tmp_path / "app")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("architecture", "name"), [("pq", "tissue"), ("equivariant", "orientation")])
def test_model_that_the_server_cannot_run_is_refused(tmp_path, architecture, name):
    model = save_model(tmp_path / "model.pt", name, architecture=architecture)
    with pytest.raises(ValueError, match=f"{architecture}.*{name}"):
        write_label_bundle(model, tmp_path / "app")


def test_finished_training_takes_the_place_of_the_served_model(checkpoint, tmp_path):
    app = write_label_bundle(checkpoint, tmp_path / "app")
    trained = save_model(tmp_path / "model.pt", shells=(700.0,), size="small")
    publish(trained.parent, app)
    served, ours = load_model(app / "models" / "model.pt", "cpu"), load_model(trained, "cpu")
    torch.testing.assert_close(served.network.state_dict(), ours.network.state_dict(), rtol=0, atol=0)
    known = {"sha256", "previous_sha256"}
    assert served.spec.model_dump(exclude=known) == ours.spec.model_dump(exclude=known)


def test_damaged_training_does_not_take_the_place_of_the_served_model(checkpoint, tmp_path):
    app = write_label_bundle(checkpoint, tmp_path / "app")
    before = (app / "models" / "model.pt").read_bytes()
    trained = save_model(tmp_path / "model.pt")
    trained.write_bytes(trained.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.pt is not the file"):
        publish(trained.parent, app)
    assert (app / "models" / "model.pt").read_bytes() == before
    assert load_model(app / "models" / "model.pt", "cpu").spec.task == "tissue"


class Server:
    """A MONAI Label server on this machine."""

    def __init__(self, home: Path, studies: Path, checkpoint: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.log = home / "server.log"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "tests" / "label_server"),
            "MONAI_ZOO_SOURCE": "local",
            "MONAI_LABEL_DATASTORE_FILE_EXT": '["*.nii.gz"]',
        }
        self._call("apps", "--download", "--name", "monaibundle", "--output", str(home / "apps"))
        write_label_bundle(checkpoint, home / "apps" / "monaibundle" / "model" / "dmri_tissue")
        options = ["--app", str(home / "apps" / "monaibundle"), "--studies", str(studies)]
        options += [
            "--host",
            "127.0.0.1",
            "--port",
            self.url.rsplit(":")[-1],
            "--conf",
            "models",
            "dmri_tissue",
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [PYTHON, "-m", "monailabel.main", "start_server", *options],
                env=self.environment,
                cwd=home,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _call(self, *arguments: str) -> None:
        subprocess.run([PYTHON, "-m", "monailabel.main", *arguments], env=self.environment, check=True)

    def wait(self, path: str, ready, seconds: float = 300):
        """The answer to `path` as soon as it is `ready`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                answer = json.loads(self.ask(path))
                if ready(answer):
                    return answer
            except OSError:
                pass
            time.sleep(1)
        raise AssertionError(f"{path} not ready after {seconds} s: {self.log.read_text()[-3000:]}")

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, kind: str = "application/json"):
        request = urllib.request.Request(self.url + path, body, {"Content-Type": kind}, method=method)
        return urllib.request.urlopen(request, timeout=300).read()

    def stop(self) -> int:
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def server(data, checkpoint, tmp_path_factory):
    if not PYTHON.is_file():
        pytest.skip("no .venv-label: make label-env")
    home = tmp_path_factory.mktemp("server")
    write_studies(data, home / "studies", labels="dseg")
    running = Server(home, home / "studies", checkpoint)
    running.wait("/info/", lambda info: True)
    yield running
    running.stop()


def infer(server, out) -> np.ndarray:
    out.write_bytes(server.ask("/infer/dmri_tissue?image=sub-01_dwi&output=image", "POST", b""))
    return np.asarray(nibabel.load(out).dataobj)


@pytest.mark.slow
def test_server_lists_the_model_and_the_studies(server):
    info = json.loads(server.ask("/info/"))
    assert info["models"]["dmri_tissue"]["labels"] == {"wm": 1, "gm": 2, "csf": 3}
    names = set(json.loads(server.ask("/datastore/?output=all"))["objects"])
    assert {"sub-01_dwi", "sub-01_b0"} <= names


@pytest.mark.slow
def test_mask_of_the_server_is_that_of_predict_and_training_replaces_the_model(
    server, data, checkpoint, tmp_path
):
    first = infer(server, tmp_path / "first.nii.gz")
    ours = predict(data / "sub-01/dwi/sub-01_dwi.nii.gz", checkpoint=checkpoint, device="cpu").image[0]
    np.testing.assert_array_equal(first, ours.numpy())
    save_label(server, tmp_path / "first.nii.gz")
    order = json.dumps({"max_epochs": 2, "val_split": 0.34, "device": "cpu"}).encode()
    server.ask("/train/dmri_tissue", "POST", order)
    done = server.wait("/train/", lambda train: train["status"] in ("DONE", "ERROR"))
    assert done["status"] == "DONE", "\n".join(done["details"][-20:])
    assert (infer(server, tmp_path / "second.nii.gz") != first).any()


def save_label(server, path) -> None:
    """Hand a corrected label in, as a viewer does."""
    head = '--part\r\nContent-Disposition: form-data; name="{}"{}\r\n\r\n'
    body = head.format("label", '; filename="label.nii.gz"').encode() + path.read_bytes()
    body += ("\r\n" + head.format("params", "") + "{}\r\n--part--\r\n").encode()
    kind = "multipart/form-data; boundary=part"
    assert b"sub-01_dwi" in server.ask("/datastore/label?image=sub-01_dwi&tag=final", "PUT", body, kind)


@pytest.mark.slow
def test_scan_without_its_table_is_refused_with_a_message(server, data, tmp_path):
    studies = Path(server.log.parent, "studies")
    shutil.copyfile(data / "sub-01/dwi/sub-01_dwi.nii.gz", studies / "lonely.nii.gz")
    server.wait("/datastore/?output=all", lambda store: "lonely" in store["objects"])
    with pytest.raises(urllib.error.HTTPError) as error:
        server.ask("/infer/dmri_tissue?image=lonely&output=image", "POST", b"")
    assert error.value.code == 400
    assert "lonely" in error.value.read().decode()
