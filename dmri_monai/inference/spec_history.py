"""How descriptions of models were written before, and what they are now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["RENAMED", "converted"]

# name of a setting in version 0.1 -> its name now
RENAMED = {
    "options": "network_options",
    "tolerance": "shell_tolerance",
    "too_few": "insufficient_directions",
}
NEEDED = ("architecture", "shells", "tolerance", "missing")
DERIVED = ("b_max",)  # follows from the others


def converted(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` of a description of any version as one of today.  ValueError where it is none."""
    if "format_version" in content:
        return dict(content)
    lacking = [name for name in NEEDED if name not in content]
    if lacking:
        raise ValueError(f"it has no {', '.join(lacking)}")
    settings = {RENAMED.get(name, name): value for name, value in content.items() if name not in DERIVED}
    settings.setdefault("order_scale", None)  # the default of its time
    if "b_max" in content:
        options = settings.get("network_options")
        settings["network_options"] = {
            "b_max": content["b_max"],
            **(options if isinstance(options, dict) else {}),
        }
    return settings
