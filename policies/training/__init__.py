"""Learning policies in the simulation, and saying whether they are worth serving."""
