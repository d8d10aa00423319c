"""The mathematics of diffusion: no networks, no Flax."""
