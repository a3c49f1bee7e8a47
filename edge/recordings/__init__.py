"""Recordings: MCAP files of depth and of what was published, written while the loop runs and played again."""
