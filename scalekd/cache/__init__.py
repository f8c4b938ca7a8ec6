"""A teacher's features on disk, read in place of its passes."""
