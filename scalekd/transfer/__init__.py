"""What a distilled student is worth elsewhere: semantic segmentation with it as the backbone."""
