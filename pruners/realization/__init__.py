"""The order of units, and how variants are realized: as masks, or as smaller models."""
