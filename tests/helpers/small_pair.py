"""A recipe of timm's smallest models at 64 pixels, whose images need not exist."""

from scalekd.recipe import Data, Recipe

SIDE = 64

SMALL_PAIR = Recipe(
    teacher="test_vit",
    student="test_resnet",
    data=Data("imagenet", image_size=SIDE),
    teacher_size=(SIDE, SIDE),
)
