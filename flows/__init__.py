"""What runs: each file one flow, reading top to bottom as the table of contents of what it does."""
