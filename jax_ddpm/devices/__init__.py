"""Processes and devices: joining a job, layouts and sharding of the state, compiled programs."""
