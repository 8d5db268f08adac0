"""Training policies in the simulation, and evaluating whether they are worth serving."""
