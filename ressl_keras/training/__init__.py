"""A training run: model from settings, callbacks, checkpoints, devices."""
