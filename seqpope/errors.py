"""The one exception that the command line prints as words instead of a traceback."""


class SeqpopeError(Exception):
    """Something that the user can mend: the message says what was expected, what came, what to do."""
