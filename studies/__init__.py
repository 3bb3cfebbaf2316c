"""Programs beside the suite; each package has its README.md."""
