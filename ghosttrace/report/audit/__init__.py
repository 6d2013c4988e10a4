"""The reports of a privacy audit: terminal, figures, HTML page, Markdown card and SARIF."""
