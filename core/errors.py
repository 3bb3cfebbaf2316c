"""The errors that end a script with one line and exit code 2."""


class InputError(Exception):
    """A user's mistake: printed as one line, exit code 2, no traceback."""


class WriteError(InputError):
    """A file that could not be written: a full disk, a folder without rights. Nothing is left."""
