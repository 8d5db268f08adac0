"""Where keys and values are kept, and what makes room among them."""
