"""Probes: what erased blocks leave behind, in bits beyond the text."""
