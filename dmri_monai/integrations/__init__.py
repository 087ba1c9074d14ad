"""Doors to other programs: MLflow, MONAI Label, TorchScript."""

from dmri_monai.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "LogMetrics": "tracking",
        "MLflowRun": "tracking",
        "OnImage": "monailabel",
        "check_request": "monailabel",
        "default_store": "tracking",
        "load_exported": "torchscript",
        "publish": "monailabel",
        "register_best": "registered_model",
    },
)
