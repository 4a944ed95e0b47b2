"""The paper beside our figures: its numbers, its claims as checks, the experiments that settle them, and the files of their results."""
