"""q-space in torch: spherical harmonics and diffusion tensors of any gradient table, on any device."""
