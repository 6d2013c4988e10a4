"""Traces from files."""
