"""Audit of the privacy guarantee: does the code that trains keep what its accountant promises? (privacy 7)."""
