"""Attacks on a real `mlflow models serve` of a registered model: short errors, no code, no scan of another folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from dmri_monai.inference.model import predict
from dmri_monai.integrations.mlflow import SCANS, register_model
from dmri_monai.io import read_dwi
from tests.conftest import _free_port, _serving
from tests.faults.attacks import MEGABYTE, Answer, as_json, component, listing, names, send
from tests.small_models import save_model

KIND = "attacks on mlflow models serve"


class Served:
    """A model server that may read one folder, with a scan of another one beside it."""

    def __init__(self, home: Path, scan: Path, checkpoint: Path) -> None:
        self.home = home
        self.allowed, self.outside = (home / name / "data" for name in ("allowed", "outside"))
        for folder in (self.allowed, self.outside):
            shutil.copytree(scan.parent, folder)
        self.scan, self.secret = self.allowed / scan.name, self.outside / scan.name
        (self.allowed / "link.nii.gz").symlink_to(self.secret)
        self.expected = predict(scan, checkpoint=checkpoint, device="cpu").image.numpy()
        self.uri = ""

    def ask(self, content: Any, kind: str = "application/json") -> Answer:
        body = content if isinstance(content, bytes) else as_json(content)
        return send(self.uri, "POST", "/invocations", body, kind)

    def answers_rightly(self, answer: Answer | None = None) -> bool:
        found = answer or self.ask(rows({"scan": str(self.scan)}))
        if found.status != 200:
            return False
        return np.array_equal(json.loads(found.body)["predictions"][0]["prediction"], self.expected)


def rows(*content: Any) -> dict[str, Any]:
    return {"dataframe_records": list(content)}


@pytest.fixture(scope="module")
def served(tmp_path_factory, scan) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("served")
    store = f"sqlite:///{home / 'mlruns.db'}"
    client = MlflowClient(store)
    client.create_experiment("Default models", artifact_location=(home / "artifacts").as_uri())
    checkpoint = save_model(home / "model.pt", architecture="plain", network_options={"filters": 4})
    found = Served(home / "folders", scan, checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("MLFLOW_TRACKING_URI", store)
        patch.setenv(SCANS, str(found.allowed))
        patch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "300")  # seconds; a busy machine takes its time
        model = register_model(checkpoint, "attacked", store)
        options = ["models", "serve", "--model-uri", model, "--env-manager", "local"]
        running = _serving(options, "/ping", home, _free_port())
        found.uri = next(running)
        yield found
        next(running, None)


def bodies(served: Served) -> dict[str, tuple[Any, str]]:
    """Requests by name: what is sent, and as what."""
    image, table = read_dwi(served.scan)
    arrays: dict[str, Any] = {
        "image": image[:, :4, :4, :4].tolist(),
        "bvals": table.bvals.tolist(),
        "bvecs": table.bvecs.tolist(),
        "affine": image.affine.tolist(),
    }
    sent: dict[str, Any] = {
        f"scan: {kind}": rows({"scan": name}) for kind, name in names(served.secret).items()
    }
    sent["scan: link"] = rows({"scan": str(served.allowed / "link.nii.gz")})
    sent |= {
        f"scan: {value!r}": rows({"scan": value}) for value in (5, None, True, [], {}, [str(served.scan)])
    }
    sent |= {f"{name} is text": rows({**arrays, name: "$1"}) for name in arrays}
    sent |= {f"{name} is short": rows({**arrays, name: arrays[name][:1]}) for name in arrays}
    sent |= {f"{name} is a component": rows({**arrays, name: component(served.secret)}) for name in arrays}
    sent |= {f"without {name}": rows({k: v for k, v in arrays.items() if k != name}) for name in arrays}
    sent["not finite"] = rows({**arrays, "affine": [[float("nan")] * 4] * 4})
    sent["infinite b-values"] = rows({**arrays, "bvals": [float("inf")] * len(arrays["bvals"])})
    sent["no rows"] = {"dataframe_records": 5}
    sent["rows of rows"] = rows([rows({})])
    sent["component"] = rows(component(served.secret))
    sent["nothing"] = {}
    sent["list"] = []
    sent["two formats"] = {**rows({"scan": str(served.scan)}), "instances": [1]}
    sent["instances"] = {"instances": [{"scan": str(served.secret)}]}
    sent["inputs"] = {"inputs": {"scan": [str(served.secret)]}}
    sent["inputs of 1 MB"] = {"inputs": [MEGABYTE]}
    sent["split"] = {"dataframe_split": {"columns": ["scan"], "data": [[str(served.secret)]]}}
    sent["split that does not fit"] = {"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}
    sent["empty"] = b""
    sent["no JSON"] = b'{"dataframe_records": ['
    sent["no text"] = b"\xff\xfe\0"
    sent["deep"] = b"[" * 100_000
    sent["deep rows"] = b'{"dataframe_records": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    found = {name: (content, "application/json") for name, content in sent.items()}
    found["CSV"] = (f"scan\n{served.secret}\n".encode(), "text/csv")
    found["CSV of something else"] = (b"a,b\n1,2\n", "text/csv")
    found["parquet"] = (b"PAR1 no parquet PAR1", "application/vnd.apache.parquet")
    found["pickle"] = (b"cos\nsystem\n(S'true'\ntR.", "application/python-pickle")
    found["kind with a newline"] = (b"{}", "application/json; charset=utf-8; $x")
    return found


def test_every_attack_is_answered_with_a_short_error_and_the_next_request_rightly(served, count):
    before, wrong = listing(served.home), []
    assert served.answers_rightly()
    for name, (content, kind) in bodies(served).items():
        answer = served.ask(content, kind)
        # of what it cannot parse as parquet, MLflow itself answers with its traceback
        short = answer.status == 400 if name == "parquet" else answer.is_short_error
        right = short and served.answers_rightly()
        count(KIND, "right" if right else "wrong")
        wrong += [] if right else [(name, answer.status, answer.body[:300])]
    assert not wrong
    assert listing(served.home) == before


def test_an_error_does_not_repeat_the_request_nor_the_code(served):
    answer = served.ask({"inputs": [{"scan": MEGABYTE}]})
    assert len(answer.body) < 1000
    assert b"site-packages" not in answer.body


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/invocations"), ("POST", "/../../etc/passwd"), ("GET", "/%00"), ("PUT", "/ping")],
)
def test_other_doors_are_closed(served, count, method, path):
    answer = send(served.uri, method, path)
    count(KIND, "right" if answer.is_short_error else "wrong")
    assert answer.is_short_error


def test_of_fifty_requests_at_once_the_right_ones_are_answered_rightly(served, count):
    right = rows({"scan": str(served.scan)})
    sent: list[Callable[[], bool]] = []
    for name in list(names(served.secret).values())[:25]:
        sent += [
            lambda: served.answers_rightly(served.ask(right)),
            lambda name=name: served.ask(rows({"scan": name})).is_short_error,
        ]
    with ThreadPoolExecutor(len(sent)) as pool:
        found = [done.result() for done in [pool.submit(one) for one in sent]]
    count(KIND, "right", sum(found))
    count(KIND, "wrong", len(found) - sum(found))
    assert len(found) == 50
    assert all(found)
