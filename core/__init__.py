"""What every other part stands on: errors, files and folders, names. Imports nothing from above."""
