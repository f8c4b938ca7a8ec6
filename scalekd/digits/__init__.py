"""The digits that the package contains, cluttered handwriting, and their small teacher."""
