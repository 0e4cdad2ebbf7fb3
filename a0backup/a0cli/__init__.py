"""The only package that starts a0cli: its processes, its commands and its replies."""
