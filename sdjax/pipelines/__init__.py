"""Wiring: tokens, towers, the sampling loop and decoders, put together."""
