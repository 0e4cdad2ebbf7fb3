"""Passwords: shared or sealed, and the recovery keys that seal and open them."""
