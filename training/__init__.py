"""Training: networks, data, augmentation, losses and the training loop."""
