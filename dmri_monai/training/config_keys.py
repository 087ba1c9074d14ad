"""Settings that nothing uses: most often a name that is almost right."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

__all__ = ["check_keys"]

CLOSE = 0.85  # 1 is equal; a missing letter in a word of ten gives 0.95


def check_keys(config: Mapping[str, Any]) -> None:
    """ValueError for a top-level key that nothing refers to, but whose name is close to one that is used.

    MONAI takes `--max_epoch 1` without a word, and trains for the default number of epochs. Other unused keys are left
    alone: one overlay serves several configs.
    """
    text = json.dumps(config, default=str)
    used = {name for name in config if re.search(rf"[@%]{re.escape(name)}\b", text)}
    for name in sorted(set(config) - used):
        if near := get_close_matches(name, used, n=1, cutoff=CLOSE):
            raise ValueError(f"the configuration has no use for {name!r}; did you mean {near[0]!r}?")
