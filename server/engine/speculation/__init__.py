"""Speculative decoding: tokens are guessed, and verified in one step. Answers stay the same."""
