"""Check nodes, and put a node into service."""
