"""Look inside a teacher and a student: the paper's figures, of any pair and any images."""
