"""A stand-in PSaaS Appliance: nodes on loopback and an `a0cli` that speaks to them, with faults to order."""
