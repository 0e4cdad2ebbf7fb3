"""The flows: one per file, each a top-to-bottom table of contents of what it does."""
