"""Deep learning on diffusion MRI with MONAI: gradient-aware transforms, equivariant layers, pretraining.

Submodules are imported when they are first used, so that `import dmri_monai` loads neither torch nor MONAI.
"""

import importlib
import pkgutil
from typing import Any

__version__ = "0.1.0"

_SUBMODULES = frozenset(module.name for module in pkgutil.iter_modules(__path__))
_PUBLIC = {"ModelSpec": "inference.spec", "Scan": "scan", "load_model": "prediction", "predict": "prediction"}


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_SUBMODULES | set(_PUBLIC) | set(globals()))
