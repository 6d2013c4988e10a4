"""Reports of a privacy audit: terminal table, figures, HTML page, Markdown card and SARIF log."""
