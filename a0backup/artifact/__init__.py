"""Artifacts: opened and read to their end, without writing any of it anywhere."""
