"""Judging an encoder: protocols, classifiers, signs of collapse, the report."""
