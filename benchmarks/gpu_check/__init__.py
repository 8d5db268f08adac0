"""What a GPU does for Trimtab, in one command that keeps to a number of seconds."""
