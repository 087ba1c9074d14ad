"""Stand-in for torchvision, of which MONAI Label imports two functions it does not need here.

torchvision's wheels fit CUDA builds of torch only; with one of those, install the real one.
"""
