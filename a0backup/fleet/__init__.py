"""The fleet: the nodes and the settings in one fleet.yaml."""
