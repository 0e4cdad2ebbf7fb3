"""Prefect's side of the steps: how often each is tried and how it is shown. The core defines what a step does."""
