"""What a transfer will cost, before it is run: the work and memory of its step, and its time."""
