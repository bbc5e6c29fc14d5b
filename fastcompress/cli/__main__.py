"""``python -m fastcompress.cli``."""

import sys

from fastcompress.cli import main

if __name__ == "__main__":
    sys.exit(main())
