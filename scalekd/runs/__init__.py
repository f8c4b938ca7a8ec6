"""A run folder on disk; knows no trainer and no console."""
