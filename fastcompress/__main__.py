"""``python -m fastcompress``: the command line."""

import sys

from fastcompress.cli import main

if __name__ == "__main__":
    sys.exit(main())
