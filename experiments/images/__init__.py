"""The image half of the paper: its tables as data, plans of the runs that make them, their execution, their figures and verdicts."""
