"""What a variant costs and loses: measurements, and the tables and plots that show them."""
