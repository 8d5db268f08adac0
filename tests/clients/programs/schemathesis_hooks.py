"""What Schemathesis is told of the server: which valid values may be refused after all."""

import schemathesis
from schemathesis.specs.openapi.checks import positive_data_acceptance

MISFITS = {"does_not_fit", "context_length_exceeded", "unsupported_parameter"}
"""Codes of fields that are right one by one; the document says that they may be refused."""


@schemathesis.check
def acceptance_of_what_fits(ctx, response, case):
    """Valid values are accepted, or refused by a code that says that they do not fit together."""
    if response.status_code == 400:
        body = response.json()
        error = body["error"] if isinstance(body["error"], dict) else body
        if error.get("code") in MISFITS:
            return None
    return positive_data_acceptance(ctx, response, case)
