"""A run of probes as a table and figures."""
