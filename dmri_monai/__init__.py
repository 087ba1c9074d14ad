"""Deep learning on diffusion MRI with MONAI: gradient-aware transforms, equivariant layers, pretraining."""

__version__ = "0.1.0"
