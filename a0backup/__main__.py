"""`python -m a0backup` is the command `a0backup`."""

from a0backup.cli.main import main

if __name__ == "__main__":
    main()
