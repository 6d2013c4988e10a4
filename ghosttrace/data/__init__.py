"""Traces: read from files, encoded, described; and tasks, which are traces with secrets in their blocks."""
