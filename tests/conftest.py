"""Shared fixtures: standard affines of direction features, real samples, a scan and a model, MLflow servers."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from dmri_monai.phantom import write_dataset
from tests.small_models import save_model

# stands in for torchvision in the server's own process; collected here, it would be imported under that name
collect_ignore = ["label_server"]
SHARED = Path(__file__).resolve().parents[2] / "shared"

SPACINGS_MM = {"iso2": (2.0, 2.0, 2.0), "2x2x2.5": (2.0, 2.0, 2.5), "1.7x1.7x5": (1.7, 1.7, 5.0)}


def _turn(axis: int, degrees: float) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    turn = torch.eye(3, dtype=torch.float64)
    turn[i, i] = turn[j, j] = angle.cos()
    turn[j, i], turn[i, j] = angle.sin(), -angle.sin()
    return turn


_OBLIQUE = _turn(2, 25.0) @ _turn(1, -15.0) @ _turn(0, 35.0)

# columns: the world direction (RAS+) of each array axis
ORIENTATIONS = {
    "LAS": torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)),
    "RAS": torch.eye(3, dtype=torch.float64),
    "PLS": torch.tensor([[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64),
    "oblique-right": _OBLIQUE,
    "oblique-left": _OBLIQUE @ torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)),
}


def grid_affine(orientation: torch.Tensor, spacing_mm: tuple[float, float, float]) -> torch.Tensor:
    """(4, 4) affine of a grid with axes `orientation` (columns) and a first voxel off the origin."""
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = orientation * torch.tensor(spacing_mm, dtype=torch.float64)
    affine[:3, 3] = torch.tensor([-31.5, 12.25, 40.0])
    return affine


STANDARD_AFFINES = {
    f"{name}-{size}": grid_affine(axes, spacing)
    for name, axes in ORIENTATIONS.items()
    for size, spacing in SPACINGS_MM.items()
}


@pytest.fixture(params=STANDARD_AFFINES.values(), ids=STANDARD_AFFINES.keys())
def standard_affine(request: pytest.FixtureRequest) -> torch.Tensor:
    """Every handedness x oblique x anisotropic affine in turn."""
    return request.param.clone()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of oracles and real samples beside the repository; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real samples in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small, oblique phantom scan."""
    out = tmp_path_factory.mktemp("scan") / "data"
    write_dataset(out, subjects=1, seed=0, shape=(20, 24, 20), spacing_mm=(6.0, 6.0, 6.0), progress=False)
    return out / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"


@pytest.fixture(scope="session")
def smallest_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same head on larger voxels, for what is predicted or drawn many times."""
    out = tmp_path_factory.mktemp("smallest") / "data"
    write_dataset(out, subjects=1, seed=0, shape=(10, 12, 10), spacing_mm=(12.0, 12.0, 12.0), progress=False)
    return out / "sub-01" / "dwi" / "sub-01_dwi.nii.gz"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tissue model on named shells, with its settings; one for any shells would tell one class alone."""
    return save_model(tmp_path_factory.mktemp("model") / "model.pt", architecture="equivariant")


@pytest.fixture
def full_disk() -> AbstractContextManager[None]:
    """Context in which no file grows beyond 2 kB: the operating system ends such a write as it does on a full disk."""
    return _small_files(2000)


@contextmanager
def _small_files(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _serving(options: list[str], health: str, home: Path, port: int) -> Iterator[str]:
    """URI of `python -m mlflow <options>` on this machine, as soon as it answers at `health`."""
    command = [sys.executable, "-m", "mlflow", *options, "--host", "127.0.0.1", "--port", str(port)]
    log = home / f"{options[0]}.log"
    # it starts uvicorn by its name
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    uri, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 180
    while not _answers(uri + health):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)
    yield uri
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)


def _answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


class MLflowServer:
    """A real MLflow server, sqlite with artifacts in a folder, that can be stopped and started again."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, _free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._running: Iterator[str] = iter(())

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.home / 'mlflow.db'}"]
        files = ["--artifacts-destination", str(self.home / "artifacts"), "--workers", "1"]
        self._running = _serving(["server", *store, *files], "/health", self.home, self.port)
        next(self._running)

    def stop(self) -> None:
        next(self._running, None)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of a real MLflow server."""
    server = MLflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server.uri
    server.stop()


@pytest.fixture
def stoppable_server(tmp_path: Path) -> Iterator[MLflowServer]:
    """An MLflow server of this test alone."""
    (tmp_path / "mlflow").mkdir()
    server = MLflowServer(tmp_path / "mlflow")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def serve_model(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Function that serves a model by its URI with `mlflow models serve`; returns the server's own URI."""
    running: list[Iterator[str]] = []

    def serve(model: str) -> str:
        options = ["models", "serve", "--model-uri", model, "--env-manager", "local"]
        running.append(_serving(options, "/ping", tmp_path, _free_port()))
        return next(running[-1])

    yield serve
    for server in running:
        next(server, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, visibly, what needs a GPU on a machine without one."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test printed, as text that can be sent: file names that are no UTF-8 are printed by some."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report
