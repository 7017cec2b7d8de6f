"""`python -m distill.evaluation`: the same as `distill eval`."""

import sys

from distill.evaluation.cli import main

if __name__ == "__main__":
    sys.exit(main())
