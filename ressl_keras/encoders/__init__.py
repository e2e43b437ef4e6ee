"""Encoders: building, loading, embedding images, exporting."""
