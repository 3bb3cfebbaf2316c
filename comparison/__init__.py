"""Who is compared, and what of it can be said: metrics, intervals, verdicts, tables."""
