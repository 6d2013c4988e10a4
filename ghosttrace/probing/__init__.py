"""Probes: information about erased blocks in the retained cache, in bits beyond the text."""
