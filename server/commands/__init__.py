"""The groups of `cityfed-server`, one file each; :mod:`server.cli` mounts them."""
