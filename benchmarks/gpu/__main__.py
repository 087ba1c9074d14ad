"""Everything that wants a GPU, on a machine with one and without a network: tests, benchmarks, experiments.

    python -m benchmarks.gpu pack          # where pip has its index: wheels into runs/gpu/wheels
    python -m benchmarks.gpu run           # there, from a checkout with that folder

`run` writes runs/gpu/lines.jsonl, a line as each result is there, and runs/gpu/*.log with the rest of what the parts
print.  A part has a time budget; what ended is not run again, so that a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part, parts
from benchmarks.gpu.wheels import download, environment, install, unmet

ROOT = Path(__file__).parents[2]
LEAST = 10.0  # seconds, for which no part is begun
GRACE = 5.0  # seconds between asking a part to end and ending it
MACHINE = """
import json, platform, torch
there = torch.cuda.is_available()
print(json.dumps({"gpu": torch.cuda.get_device_name() if there else None, "torch": torch.__version__,
                  "python": platform.python_version(), "memory_gib": round(
                      torch.cuda.get_device_properties(0).total_memory / 2**30) if there else None}))
"""


class Lines:
    """The file of all lines, each written out as it is added."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._end_torn_line()

    def _end_torn_line(self) -> None:
        """A call that was killed may have left half a line."""
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")

    def add(self, part: str, **values: Any) -> None:
        line = json.dumps({"part": part, **values})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        print(line, flush=True)

    def states(self) -> dict[str, str]:
        """Part -> how it ended when it was last run."""
        text = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        found = [json.loads(line) for line in text.splitlines()]
        return {line["part"]: line["state"] for line in found if "state" in line}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="download the wheels")
    pack.add_argument("--architecture", default="x86_64", help="of the machine with the GPU: x86_64, aarch64")
    run = commands.add_parser("run", help="on the machine with the GPU")
    run.add_argument("--minutes", type=float, default=12.0, help="for this call, all in all")
    run.add_argument(
        "--dry", action="store_true", help="on the CPU, sizes that mean nothing, the same commands"
    )
    run.add_argument("--only", nargs="+", metavar="PART", help="parts whose name begins so")
    for one in (pack, run):
        one.add_argument("--wheels", type=Path, default=ROOT / "runs" / "gpu" / "wheels")
    run.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu")
    options = parser.parse_args()
    if options.command == "pack":
        size = download(options.wheels, options.architecture)
        print(json.dumps({"wheels": str(options.wheels), "mb": round(size / 1e6, 1)}))
    else:
        sys.exit(run_parts(options))


def run_parts(options: argparse.Namespace) -> int:
    """Exit code: 1 where a part failed, else 0, also where some are left for a further call."""
    end = time.monotonic() + 60 * options.minutes
    own = prepared(options.wheels, options.out / "site")
    lines = Lines(options.out / "lines.jsonl")
    own["GPU_LINES"] = str(lines.path)
    machine = json.loads(subprocess.check_output([sys.executable, "-c", MACHINE], env=own, text=True))
    if machine["gpu"] is None and not options.dry:
        raise SystemExit("torch finds no GPU here; --dry runs the same commands on the CPU")
    lines.add("machine", **machine, dry=options.dry, minutes=options.minutes)
    states = lines.states()
    for part in in_order(parts(options.out, options.minutes, dry=options.dry), states, options.only):
        left = end - time.monotonic()
        if left > LEAST:
            states[part.name] = run_part(part, min(part.seconds, left), lines, own)
        else:
            states[part.name] = "not begun"
    left_over = [name for name, state in states.items() if state in ("out of time", "not begun")]
    if left_over:
        print(f"left for a further call: {', '.join(left_over)}", flush=True)
    return int("failed" in states.values())


def prepared(wheels: Path, site: Path) -> dict[str, str]:
    """The environment of the parts, wheels unpacked where there are any; SystemExit where something is missing."""
    if wheels.is_dir():
        install(wheels, site)
    own = environment(site, os.environ)
    missing = unmet([*own["PYTHONPATH"].split(":"), *sys.path])
    if missing:
        raise SystemExit(f"{'; '.join(missing)}.  Wheels are brought by `python -m benchmarks.gpu pack`")
    # plugins of pytest that happen to be there may want what is not
    fixed = {
        "MPLBACKEND": "Agg",
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return {**own, **fixed}


def in_order(found: list[Part], states: dict[str, str], only: list[str] | None) -> list[Part]:
    """Those that have not finished: first what was never begun, then what took too long or failed."""
    wanted = [p for p in found if only is None or p.name.startswith(tuple(only))]
    left = [p for p in wanted if states.get(p.name) != "finished"]
    return sorted(left, key=lambda part: part.name in states)


def run_part(part: Part, seconds: float, lines: Lines, own: dict[str, str]) -> str:
    """Run one part, keep its lines, and return how it ended: finished, failed, or out of time."""
    start = time.monotonic()
    log = lines.path.parent / f"{re.sub('[^a-z0-9]+', '-', part.name)}.log"
    with log.open("a", encoding="utf-8") as rest:
        process = subprocess.Popen(
            part.command,
            cwd=ROOT,
            env=own,
            text=True,
            stdout=subprocess.PIPE,
            stderr=rest,
            start_new_session=True,
        )
        reader = threading.Thread(target=_keep, args=(process, part.name, lines, rest), daemon=True)
        reader.start()
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also where this call itself is interrupted: loaders and compilers of a part go with it
            _end(process)
            reader.join(timeout=GRACE)  # what left the group of the part may hold its end of the pipe
    state = "out of time" if code is None else "failed" if code else "finished"
    lines.add(part.name, state=state, seconds=round(time.monotonic() - start, 1), **_reason(code, log))
    return state


def _keep(process: subprocess.Popen[str], name: str, lines: Lines, rest: Any) -> None:
    """Lines of JSON into the file of lines, all others into the log."""
    assert process.stdout is not None
    for text in process.stdout:
        try:
            values = json.loads(text)
        except json.JSONDecodeError:
            values = None
        if isinstance(values, dict):
            lines.add(name, **{key: value for key, value in values.items() if key not in ("part", "state")})
        else:
            rest.write(text)
            rest.flush()


def _end(process: subprocess.Popen[str]) -> None:
    """The process and all that it started, gone before the next part wants their memory."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        end = time.monotonic() + GRACE
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < end:
                process.poll()  # or its entry would stay
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


def _reason(code: int | None, log: Path) -> dict[str, Any]:
    if not code:
        return {}
    return {"code": code, "end_of_log": log.read_text(encoding="utf-8")[-800:]}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
