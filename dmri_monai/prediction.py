"""The door to trained models: `load_model("tissue").predict(Scan.read(path)).write(folder)`."""

from dmri_monai.inference.model import TrainedModel, load_model, predict, predict_all
from dmri_monai.inference.released import bundle_folder, released_models
from dmri_monai.inference.result import Prediction

__all__ = [
    "Prediction",
    "TrainedModel",
    "bundle_folder",
    "load_model",
    "predict",
    "predict_all",
    "released_models",
]
