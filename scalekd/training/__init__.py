"""A recipe -> a trained student, on Lightning."""
