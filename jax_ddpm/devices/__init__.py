"""Processes and devices: layouts of states, sharding rules, the mapped train step."""
