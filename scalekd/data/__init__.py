"""Images to batches; knows no trainer."""
