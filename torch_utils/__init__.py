"""Tensor code without GANs: ops, layers, checkpoints, statistics, distribution."""
