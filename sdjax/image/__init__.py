"""Image <-> latent, embedding, array."""
