"""Run folders, records that survive a kill, and the results that come back from both."""
