"""Looking at nodes, and putting one into service."""
