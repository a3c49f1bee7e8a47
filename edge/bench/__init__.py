"""How fast this machine tracks: `measure` runs the daemon's own loop, the other files look at it from other sides."""


class BenchError(Exception):
    """A measurement that cannot be made, in one line."""
