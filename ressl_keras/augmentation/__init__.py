"""Augmented views: operations on images, layers that draw them, the views of a step."""
