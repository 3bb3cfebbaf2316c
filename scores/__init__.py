"""Frame scores: files of any system, the built-in scorer, a corpus for it."""
