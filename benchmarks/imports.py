"""Time of imports in fresh processes, the best of several, as JSON lines.

package_s: `import dmri_monai`, which must load neither torch nor monai.
equivariant_s: `import dmri_monai.equivariant`, on top of torch.
layer_s: the same and the first layer made, which loads e3nn.
monai_s: `import monai` on top of torch: any part of MONAI loads all of it, and MLflow, ignite, matplotlib and
scikit-learn where they are installed.  monai_alone_s: the same without these four and pandas.
report_s: `import dmri_monai.report.page` on top of MONAI.

Run: python benchmarks/imports.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

WITHOUT = "sys.modules.update(dict.fromkeys(('mlflow', 'ignite', 'matplotlib', 'sklearn', 'pandas')))"
# what comes before the clock starts, and what is timed
CASES = {
    "package_s": ("", "import dmri_monai"),
    "equivariant_s": ("import torch", "import dmri_monai.equivariant"),
    "layer_s": ("import torch", "import dmri_monai.equivariant as e; e.SteerableConv3d('1x0e', '1x0e', 3)"),
    "monai_s": ("import torch", "import monai"),
    "monai_alone_s": (f"import sys, torch; {WITHOUT}", "import monai"),
    "report_s": ("import monai", "import dmri_monai.report.page"),
}
TARGETS = {"package_s": 0.3, "equivariant_s": 1.5}
PROBE = """
{before}
import json, sys, time
start = time.perf_counter()
{timed}
seconds = time.perf_counter() - start
print(json.dumps([seconds, [name for name in ("torch", "monai", "e3nn") if name in sys.modules]]))
"""


def measure(before: str, timed: str) -> tuple[float, list[str]]:
    """Seconds, and which of the large packages are loaded then."""
    code = PROBE.format(before=before, timed=timed)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    seconds, loaded = json.loads(done.stdout)
    return seconds, loaded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    for name, (before, timed) in CASES.items():
        runs = [measure(before, timed) for _ in range(repeats)]
        best, loaded = min(runs)
        print(
            json.dumps({"name": name, "best": round(best, 3), "target": TARGETS.get(name), "loaded": loaded})
        )


if __name__ == "__main__":
    main()
