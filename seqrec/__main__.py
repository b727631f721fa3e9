"""`python -m seqrec` is the `seqrec` command."""

from seqrec.cli import main

if __name__ == "__main__":
    main()
