"""The student, shipped."""
