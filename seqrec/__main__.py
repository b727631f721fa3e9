"""`python -m seqrec` is the `seqrec` command."""

from seqrec.cli.main import main

if __name__ == "__main__":
    main()
