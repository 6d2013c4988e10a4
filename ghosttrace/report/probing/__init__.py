"""Table and figures of a probe run."""
