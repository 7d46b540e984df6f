"""`python -m blackbox.cli` is the `blackbox` script."""

from blackbox.cli import main

if __name__ == "__main__":
    main()
