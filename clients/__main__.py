"""``python -m clients``."""

from clients.cli import main

if __name__ == "__main__":
    main()
