"""Batch effects normalization for plate-based microscopy screens."""
