"""Speed, memory and structure of the suite, measured; `make bench`."""
