"""A department's node: bind data, decide, train, charge, mask, answer."""
