"""`python -m misotune`: the same as the command `misotune`."""

from misotune.cli.main import main

if __name__ == "__main__":
    main()
