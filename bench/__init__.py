"""Speed benchmarks; each prints one JSON line per figure."""
