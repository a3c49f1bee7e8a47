"""Hand tracking from depth cameras on small computers."""
