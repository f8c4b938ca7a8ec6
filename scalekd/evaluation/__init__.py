"""Evaluate a model on validation images."""
