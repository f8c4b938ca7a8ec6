"""`scalekd transfer segment`: semantic segmentation with a student as the backbone."""
