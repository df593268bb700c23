"""Reports in plain parts, rendered as one HTML page and as Markdown; what a page says is decided elsewhere."""
