"""Rows of tokens, and where they come from."""
