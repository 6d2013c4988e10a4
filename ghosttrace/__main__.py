"""`python -m ghosttrace`: the command line."""

from ghosttrace.cli.main import main

if __name__ == "__main__":
    main()
