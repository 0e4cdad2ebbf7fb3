"""A stand-in PSaaS Appliance: nodes on loopback and an `a0cli` that talks to them, with faults on order."""
