"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: bad input, a bad setting, an unreachable store.

    The message is a single line that names the file, column, key or value and says what to do. Jobs and the
    command line print it without a traceback and exit with code 2.
    """


class StoreError(UserError):
    """The store does not answer, or refuses: nothing is known of what lies there."""
