"""Text in, training blocks out: read, split, cut into sections, make tasks, pack."""
