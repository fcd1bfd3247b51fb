"""Measurements of the landscape around a float model and the points that quantization and training chose."""
