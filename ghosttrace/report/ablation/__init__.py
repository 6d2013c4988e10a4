"""Table, figures and HTML page of an ablation; the page includes a trace reader."""
