"""An ablation as a table, figures, and one HTML page with a reader of its traces."""
