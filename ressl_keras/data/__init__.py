"""Images: where they come from, how they are decoded, in which order they are read."""
