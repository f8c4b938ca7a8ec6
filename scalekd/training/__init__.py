"""One run of a recipe: what it is prepared from, its loop, and what happens between steps."""
