"""A department's rules: typed policy, one function per rule, signed TOML files."""
