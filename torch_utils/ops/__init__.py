"""Operators of the networks: exact plain-PyTorch reference forms, and the seam (`backend`) through which faster ones take over."""
