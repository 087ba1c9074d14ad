"""What kernels are made of: radial functions, bases of steerable kernels on the voxel grid, and how they are kept."""
