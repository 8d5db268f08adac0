"""The error of everything that obtains a model."""

from pruners.support.errors import UserError


class ModelSourceError(UserError):
    """The model cannot be obtained. One clear line."""
