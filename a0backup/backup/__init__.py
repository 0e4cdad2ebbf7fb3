"""The backup of one node: the loop, what decides its next action, and the phases that do it."""
