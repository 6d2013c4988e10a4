"""The command line: one file per command, and files with shared options and output."""
