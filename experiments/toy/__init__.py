"""The paper's experiments in two dimensions: distributions, methods, stacked training, measures and figures."""
