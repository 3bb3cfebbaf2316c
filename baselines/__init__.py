"""Rules that a policy is held against, each tuned on training clips."""
