"""Pairing regularization: the two-tower network, its losses, negatives gathered over ranks, and the adaptive weight."""
