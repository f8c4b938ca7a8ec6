"""From images on disk to batches; this package imports no training loop."""
