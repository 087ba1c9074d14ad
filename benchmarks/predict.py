"""How long a prediction takes, and where: stages in one process, and the command line as a user calls it.

Run: python benchmarks/predict.py [SCAN] [--against CHECKOUT] [--loops]

Prints JSON lines.  SCAN: a DWI file; without one, a phantom head of 128 x 128 x 82 voxels and 17 volumes is simulated.
--against: another checkout of this repository (such as `git worktree add ../before COMMIT`) whose command line is timed
in turn with this one's, so that the machine's load meets both.  --loops: instead, epochs of a training and predictions
with their files and page, in processes that have warmed up; the processor time tells more than the wall where the
machine does other things.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHAPE, SPACING_MM = (128, 128, 82), (2.0, 2.0, 2.0)
CLI = "from dmri_monai.cli import app; app()"
# what runs in a checkout: prints seconds of wall and processor of one round after the first
CLOCK = """
import inspect, json, sys, time
def now():
    return time.perf_counter(), time.process_time()
def tell(times):
    rounds = [[b - a for a, b in zip(*pair)] for pair in zip(times[1:], times[2:])]
    print(json.dumps([sorted(column)[len(rounds) // 2] for column in zip(*rounds)]))
"""
TRAINING = """
from pathlib import Path
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
root, data, out = sys.argv[1:]
settings = dict(device="cpu", bundle_root=root + "/bundle", dataset_dir=data, output_dir=out, mlflow=False, size="tiny",
    spacing_mm=[4.0, 4.0, 4.0], crop_size=[32, 32, 32], max_epochs=6, cache_rate=1.0)
configs = Path(root, "bundle", "configs")
workflow = ConfigWorkflow(config_file=str(configs / "train.json"), meta_file=str(configs / "metadata.json"),
    logging_file=False, workflow_type="train", **settings)
workflow.initialize()
times = [now()]
trainer = workflow.parser.get_parsed_content("train#trainer")
trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: times.append(now()))
workflow.run()
tell(times)
"""
PREDICTION = """
from dmri_monai.prediction import predict
root, scan, out = sys.argv[1:]
page = {"report": True} if "report" in inspect.signature(predict).parameters else {}  # once it was always written
times = [now()]
for i in range(5):
    predict(scan, device="cpu", output_dir=f"{out}/{i}", **page)
    times.append(now())
tell(times)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scan", type=Path, nargs="?")
    parser.add_argument("--against", type=Path, help="another checkout to time in turn with this one")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--loops", action="store_true", help="a training and predictions after they have warmed up"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sides = {"this": ROOT} | ({"before": options.against.resolve()} if options.against else {})
        if options.loops:
            loops(sides, options.runs, Path(temporary))
            return
        scan = options.scan.resolve() if options.scan else simulated(Path(temporary))
        stages(scan, Path(temporary, "stages"))
        for command in (["predict", str(scan), "--device", "cpu", "-o"], ["check", str(scan)], ["--help"]):
            compare(command, sides, options.runs, Path(temporary))


def simulated(folder: Path) -> Path:
    """The path of a simulated scan with one b0 and 16 directions."""
    import torch

    from dmri_monai.phantom import write_dataset
    from dmri_monai.scan import Scan

    write_dataset(
        folder / "data",
        subjects=1,
        seed=0,
        shape=SHAPE,
        spacing_mm=SPACING_MM,
        scheme="clinical-32",
        progress=False,
    )
    whole = Scan.read(folder / "data" / "sub-01" / "dwi" / "sub-01_dwi.nii.gz")
    weighted = torch.nonzero(~whole.table.b0_mask).flatten()[:16]
    path = folder / "scan_dwi.nii.gz"
    whole[torch.cat([torch.nonzero(whole.table.b0_mask).flatten()[:1], weighted])].write(path)
    return path


def stages(scan: Path, out: Path) -> None:
    """One prediction in this process, stage by stage; everything but network and files is overhead."""
    started = time.perf_counter()
    import torch

    from dmri_monai.prediction import load_model
    from dmri_monai.scan import Scan

    seconds: dict[str, float] = {"import": time.perf_counter() - started}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - begin
        return result

    model = timed("load_model", lambda: load_model("tissue", "cpu"))
    read = timed("reading", lambda: Scan.read(scan))
    encoded = timed("encoding", lambda: model.encode(read))
    image = encoded["image"].as_tensor().unsqueeze(0)
    with torch.no_grad():
        timed("network", lambda: model.network(image))
    timed("checking", lambda: model.examine(read))
    found = timed("predict", lambda: model.predict(read))
    timed("writing", lambda: found.write(out))
    timed("writing_with_report", lambda: found.write(out, report=True))
    seconds["overhead"] = seconds["predict"] - seconds["network"]
    shown = {name: round(value, 3) for name, value in seconds.items()}
    print(
        json.dumps(
            {
                "benchmark": "predict",
                "threads": torch.get_num_threads(),
                "shape": list(read.image.shape),
                **shown,
            }
        )
    )


def compare(command: list[str], sides: dict[str, Path], runs: int, folder: Path) -> None:
    """Wall and processor seconds of one command of the command line, the sides in turn, after a warm-up of each."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for run in range(runs + 1):
        for name, checkout in sides.items():
            target = [str(folder / f"{name}-{run}")] if command[-1] == "-o" else []
            measured = call([*command, *target], checkout)
            if run:
                found[name].append(measured)
    tell(f"dmri-monai {command[0]}", found)


def tell(benchmark: str, found: dict[str, list[tuple[float, float]]]) -> None:
    """A line for each side: medians of wall and processor seconds."""
    for name, values in found.items():
        wall, cpu = (round(statistics.median(column), 3) for column in zip(*values, strict=True))
        line = {"benchmark": benchmark, "side": name, "wall_s": wall, "cpu_s": cpu, "runs": len(values)}
        print(json.dumps(line), flush=True)


def loops(sides: dict[str, Path], runs: int, folder: Path) -> None:
    """An epoch of training with its validation and checkpoints, and a prediction with its files, the sides in turn."""
    from dmri_monai.phantom import write_dataset

    data = folder / "data"
    write_dataset(
        data,
        subjects=5,
        seed=0,
        shape=(40, 48, 40),
        spacing_mm=(4.0, 4.0, 4.0),
        scheme="clinical-32",
        progress=False,
    )
    scan = str(data / "sub-01" / "dwi" / "sub-01_dwi.nii.gz")
    for name, code, source in (("epoch", TRAINING, str(data)), ("prediction", PREDICTION, scan)):
        found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for run in range(runs):
            for side, checkout in sides.items():
                target = str(folder / f"{name}-{side}-{run}")
                shown = ran(CLOCK + code, [str(checkout), source, target], checkout)
                found[side].append(tuple(json.loads(shown.splitlines()[-1])))
        tell(name, found)


def ran(code: str, arguments: list[str], checkout: Path) -> str:
    """What `code` prints with the package of `checkout`."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
    if done.returncode > 1:  # 1: the check found something
        raise SystemExit(done.stderr)
    return done.stdout


def call(arguments: list[str], checkout: Path) -> tuple[float, float]:
    """Wall and processor seconds of `dmri-monai` with `arguments`, with the package of `checkout`."""
    before = os.times()
    started = time.perf_counter()
    ran(CLI, arguments, checkout)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, cpu


if __name__ == "__main__":
    main()
