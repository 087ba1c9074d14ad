"""From a trained model and a scan to a prediction."""

from dmri_monai.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ARCHITECTURES": "model",
        "CpuAutocast": "precision",
        "FullVolumeInferer": "inferers",
        "Prediction": "predictor",
        "predict": "predictor",
        "Model": "model",
        "RotationEnsemble": "ensemble",
        "SplitUncertaintyd": "ensemble",
        "SymmetricWindowInferer": "inferers",
        "VolumeInferer": "inferers",
        "WriteResults": "outputs",
        "autocast": "precision",
        "build_network": "model",
        "cuda_amp": "precision",
        "encode": "encoding",
        "ensemble_of": "ensemble",
        "to_device": "model",
        "prepare_batch": "model",
        "split_uncertainty": "ensemble",
        "subsample_measurements": "encoding",
    },
)
