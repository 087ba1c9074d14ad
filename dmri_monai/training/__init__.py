"""Training and pretraining: data sets that can resume, checkpoints, handlers, pretexts."""

from dmri_monai.lazy import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Checkpoint": "checkpoint",
        "DiskCache": "caching",
        "EarlyStopping": "handlers",
        "EpochSampler": "randomness",
        "FreezeBody": "optimization",
        "MethodEvaluator": "comparison",
        "Monitored": "monitor",
        "PretrainBatch": "pretext",
        "Progress": "handlers",
        "SeedEpochs": "randomness",
        "SeededDataset": "randomness",
        "StopAtNonFinite": "handlers",
        "ValidationPicture": "handlers",
        "compare": "comparison",
        "copy_with_weights": "checkpoint",
        "cosine": "optimization",
        "derive_seed": "randomness",
        "inputs_of": "continuation",
        "load_pretrained": "checkpoint",
        "loss_of": "pretext",
        "lower_is_better": "pretext",
        "parameter_groups": "optimization",
        "pretext_loss": "pretext",
        "pretrain": "pretext",
        "reuse_handler": "handlers",
        "seed_everything": "randomness",
    },
)
