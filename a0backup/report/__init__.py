"""Reports on what a run is doing and how it ended, for people and for programs."""
