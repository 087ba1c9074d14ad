"""SIGTERM ends as an exception does, in the process that asked for it alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TIDY = """
import os, signal, sys, time
from dmri_monai.signals import end_on_sigterm
end_on_sigterm()
try:
    print(os.getpid(), flush=True)
    time.sleep(60)
finally:
    print("tidied up", flush=True)
"""
OWN = """
import signal, time
from dmri_monai.signals import end_on_sigterm
signal.signal(signal.SIGTERM, lambda *_: print("own", flush=True))
end_on_sigterm()
print("ready", flush=True)
time.sleep(1)
"""
FORKED = """
import os, signal, time
from dmri_monai.signals import end_on_sigterm
end_on_sigterm()
pid = os.fork()
if pid == 0:
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("tidied up by the fork", flush=True)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def start(code):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_process_tidies_up(sent):
    process = start(TIDY)
    assert process.stdout.readline()
    process.send_signal(sent)
    assert process.communicate()[0] == "tidied up\n"
    assert process.returncode == 128 + sent


def test_a_process_goes_on_under_nohup():
    process = start("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + TIDY.replace("60", "1"))
    assert process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    process.communicate()
    assert process.returncode == 0


def test_a_handler_of_ones_own_stays():
    process = start(OWN)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate()[0] == "own\n"


def test_forked_processes_end_at_once():
    process = start(FORKED)
    assert process.stdout.readline() == "ready\n"
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    assert process.communicate()[0] == f"{-signal.SIGTERM}\n"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_terminated_prediction_leaves_nothing(tmp_path, scan, checkpoint, sent):
    """It is stopped while it writes: the map is there under its temporary name."""
    code = (
        "import os, signal, sys\n"
        "import dmri_monai.inference.result as prediction\n"
        "whole = prediction.save_nifti\n"
        f"def save(*a, **k):\n    whole(*a, **k)\n    os.kill(os.getpid(), {int(sent)})\n    signal.pause()\n"
        "prediction.save_nifti = save\n"
        "from dmri_monai.cli import app\n"
        "app(sys.argv[1:])\n"
    )
    arguments = ["predict", str(scan), "-o", str(tmp_path / "out"), "--checkpoint", str(checkpoint)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, timeout=300
    )
    assert done.returncode in (143, 130, 1), done.stderr[-2000:]
    assert not list((tmp_path / "out").iterdir())
