"""The one error of this package."""


class EmbeddedError(Exception):
    """An embedded server cannot be started; the text is one line that says what to do about it."""
