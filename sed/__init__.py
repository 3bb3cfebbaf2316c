"""Sound event detection: recordings, labels, signals, metrics. Knows no policy."""
