"""Traffic on paper: a measured table, a simulated engine, an environment to learn in."""
