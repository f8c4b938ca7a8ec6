"""A teacher's cached outputs on disk, which training reads in place of the teacher's passes."""
