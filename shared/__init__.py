"""What both sides must agree on: messages, crypto, contracts, privacy accounting, tasks."""
