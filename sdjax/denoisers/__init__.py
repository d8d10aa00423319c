"""Networks inside the sampling loop."""
