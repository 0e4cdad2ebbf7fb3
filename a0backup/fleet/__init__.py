"""The fleet: the nodes and the settings that one fleet.yaml names."""
