"""Secure aggregation as sans-I/O state machines (protocol 1 to 4)."""
