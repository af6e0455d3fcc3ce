"""The one exception that is the user's or the machine's fault."""


class InputError(ValueError):
    """Something given to Kilolayer cannot be used: its text names what, where, and what is allowed.

    The command line prints the text on one line and exits with status 2; every other
    exception is a fault of ours and keeps its traceback.
    """
