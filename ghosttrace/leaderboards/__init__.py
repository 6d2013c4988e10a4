"""The leaderboard: finished runs side by side, by model, law, benchmark and defence."""
