"""The backup of one node: the loop, the decision about the next action, and the phases that carry it out."""
