"""The description of the HTTP API: `GET /openapi.json`."""
