"""Open Data Contract Standard files and their compiled checks."""
