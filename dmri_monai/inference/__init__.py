"""From a trained model and a scan to a prediction."""

from dmri_monai.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "CpuAutocast": "precision",
        "FullVolumeInferer": "inferers",
        "ModelSpec": "spec",
        "Prediction": "result",
        "RotationEnsemble": "ensemble",
        "ScanDataset": "scan_dataset",
        "SplitUncertaintyd": "ensemble",
        "SymmetricWindowInferer": "inferers",
        "TrainedModel": "model",
        "VolumeInferer": "inferers",
        "WriteResults": "bundle_results",
        "autocast": "precision",
        "build_network": "architectures",
        "bundle_folder": "released",
        "check_model": "bundle_config",
        "check_settings": "bundle_config",
        "cuda_amp": "precision",
        "current_config": "bundle_config",
        "encode": "encoding",
        "ensemble_of": "ensemble",
        "load_model": "model",
        "load_weights": "weights",
        "model_settings": "bundle_config",
        "predict": "model",
        "prepare_batch": "architectures",
        "released_models": "released",
        "resample_scan": "encoding",
        "split_uncertainty": "ensemble",
        "subsample_measurements": "encoding",
        "to_device": "architectures",
    },
)
