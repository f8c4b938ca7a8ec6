"""Run folders on disk: their files, locks, checkpoints, results, curves and status."""
