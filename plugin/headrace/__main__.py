"""`python -m headrace`, the same as `headrace`: for where the script is not on PATH."""

import sys

from headrace.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
