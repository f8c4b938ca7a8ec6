"""Export a student for use without this package."""
