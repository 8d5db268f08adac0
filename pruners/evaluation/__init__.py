"""What a variant costs and loses, and the tables, reports and plots that say so."""
