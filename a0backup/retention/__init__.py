"""Retention: which artifacts stay, and the removal of the others."""
