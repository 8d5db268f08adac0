"""Files, checkpoints, progress, validation and errors, for all rooms."""
