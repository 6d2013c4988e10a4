"""What a run of an instrument takes: its command line is run at small sizes, and the rest is extrapolated."""
