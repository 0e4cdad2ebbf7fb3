"""The steps of a backup as Prefect tasks, one file per a0cli step; what they do is in the core."""
