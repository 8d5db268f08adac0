"""Rows of token ids, and the files and data sets that they come from."""
