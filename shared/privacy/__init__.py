"""Privacy parameters, accounting and the ledger."""
