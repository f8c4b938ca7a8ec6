"""The digits default: cluttered handwriting, and the small teacher that the package carries."""
