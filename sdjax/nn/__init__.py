"""Bricks shared by every network: one of each."""
