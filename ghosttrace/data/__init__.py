"""Reading, tokenisation and description of traces; and tasks, which are traces with secrets in their blocks."""
