"""Whether and how a teacher and a student fit, before anything is trained."""
