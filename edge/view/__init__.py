"""Looking at running daemons: in the terminal, in the browser, in one line, and as metrics."""
