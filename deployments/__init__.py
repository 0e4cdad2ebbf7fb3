"""The installation: the engine's own server, and the registration of blocks, limits and automations."""
