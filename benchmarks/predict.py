"""How long a prediction takes, and where: stages in one process, and the command line as a user calls it.

Run: python benchmarks/predict.py [SCAN] [--against CHECKOUT]

Prints JSON lines.  SCAN: a DWI file; without one, a phantom head of 128 x 128 x 82 voxels and 17 volumes is simulated.
--against: another checkout of this repository (such as `git worktree add ../before COMMIT`) whose command line is timed
in turn with this one's, so that the machine's load meets both.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scan", type=Path, nargs="?")
    parser.add_argument("--against", type=Path, help="another checkout to time in turn with this one")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scan = options.scan or simulated(Path(temporary))
        stages(scan, Path(temporary, "stages"))
        sides = {"this": ROOT} | ({"before": options.against.resolve()} if options.against else {})
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
    for name, values in found.items():
        wall, cpu = (round(statistics.median(column), 2) for column in zip(*values, strict=True))
        print(
            json.dumps(
                {
                    "benchmark": f"dmri-monai {command[0]}",
                    "side": name,
                    "wall_s": wall,
                    "cpu_s": cpu,
                    "runs": runs,
                }
            )
        )


def call(arguments: list[str], checkout: Path) -> tuple[float, float]:
    """Wall and processor seconds of `dmri-monai` with `arguments`, with the package of `checkout`."""
    before = os.times()
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    code = "from dmri_monai.cli import app; app()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True
    )
    if done.returncode > 1:  # 1: the check found something
        raise SystemExit(done.stderr)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, cpu


if __name__ == "__main__":
    main()
