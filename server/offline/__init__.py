"""What the commands do that need no server: build, train, measure, profile."""
