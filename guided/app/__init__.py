"""Pages for the browser: the guide editor, served on this machine, and the data page, a file."""
