"""Findings, table and page of a leaderboard."""
