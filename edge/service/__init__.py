"""A daemon that runs for long: its systemd units, what it tells the service manager, and how it is asked to change."""
