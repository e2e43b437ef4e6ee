"""The method: model, losses and objectives, queue, networks, optimizer."""
