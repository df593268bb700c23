"""The groups of `cityfed-client`, one file each; :mod:`clients.cli` mounts them."""
