"""`scalekd transfer detect`: detection and instance segmentation with a student as the backbone."""
