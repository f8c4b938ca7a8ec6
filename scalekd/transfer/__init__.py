"""What a distilled student is worth elsewhere: segmentation and detection with it as the backbone.

What all transfers have in common is here, and each of them has a room of its own.
"""
