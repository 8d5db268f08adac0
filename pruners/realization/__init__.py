"""Variants as smaller models of their own, their corrections merged in."""
