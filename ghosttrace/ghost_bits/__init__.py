"""Ghost bits: how much the ghost channel adds to the log-probability of the following text, on fixed traces."""
