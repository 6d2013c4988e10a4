"""Ghost bits: what the channel adds to the probability of the text that follows, on fixed traces."""
