"""Keys, sealing and key streams, from the ``cryptography`` package only."""
