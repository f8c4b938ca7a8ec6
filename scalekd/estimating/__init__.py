"""What a recipe will cost, before anyone pays for it."""
