"""A network gets better on one user's hand and one sensor, from recordings without labels."""
