"""The networks of a device: their cards, which are accepted and in use, tried, tuned and changed while it runs."""
