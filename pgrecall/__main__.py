"""`python -m pgrecall`: the same as the console script `pgrecall`."""

from pgrecall.cli import main

if __name__ == "__main__":
    main()
