"""Ray clusters: the connection, and workers whose work outlives them."""
