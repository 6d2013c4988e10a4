"""Run folders, records that survive a killed process, and result objects."""
