"""Work on stored artifacts."""
