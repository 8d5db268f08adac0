"""The base class of errors that a user can put right. It imports nothing, so it loads fast."""


class UserError(ValueError):
    """A request cannot be carried out. The message is one line: what, where, and what to do."""
