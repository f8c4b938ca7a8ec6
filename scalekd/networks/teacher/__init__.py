"""A frozen teacher, and its last stage by itself."""
