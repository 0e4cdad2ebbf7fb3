"""The core: what a backup is and how it is kept. It imports no engine, so that the vault opens without one."""
