"""a0cli: the one place that starts it, its commands, and its replies."""
