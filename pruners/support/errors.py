"""What a user can put right. Imports nothing, so that a command can tell early."""


class UserError(ValueError):
    """Something that was asked for cannot be done. One clear line: what, where, what to do."""
