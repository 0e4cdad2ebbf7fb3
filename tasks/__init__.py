"""Prefect's side of the steps: how often each is tried, and how it is shown. What a step does is in the core."""
