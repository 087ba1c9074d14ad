"""A real MONAI Label server, in its own environment."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dmri_monai.integrations.monailabel import write_label_bundle

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-label" / "bin" / "python"


class LabelServer:
    """A MONAI Label server on this machine: of the studies in `home`, where it keeps all its files."""

    def __init__(self, home: Path, checkpoint: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self.log = home / "server.log"
        self.environment = {
            **os.environ,
            "HOME": str(home),
            "TMPDIR": str(home / "tmp"),
            "PYTHONPATH": str(ROOT / "tests" / "label_server"),
            "MONAI_ZOO_SOURCE": "local",
            "MONAI_LABEL_DATASTORE_FILE_EXT": '["*.nii.gz"]',
        }
        (home / "tmp").mkdir()
        self._call("apps", "--download", "--name", "monaibundle", "--output", str(home / "apps"))
        write_label_bundle(checkpoint, home / "apps" / "monaibundle" / "model" / "dmri_tissue")
        options = ["--app", str(home / "apps" / "monaibundle"), "--studies", str(home / "studies")]
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


@contextmanager
def label_server(home: Path, checkpoint: Path) -> Iterator[LabelServer]:
    """A server that runs inside; skips the test without its environment."""
    if not PYTHON.is_file():
        pytest.skip("no .venv-label: make label-env")
    running = LabelServer(home, checkpoint)
    try:
        running.wait("/info/", lambda info: True)
        yield running
    finally:
        running.stop()
