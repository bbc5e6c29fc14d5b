"""The command line: ``fastcompress info|verify|explain|bench|report|quantize|prune|compress``.

Models, inputs and data are given as ``module:callable``; models also as a Hugging Face directory. Exit status: 0 done,
1 failed (a corrupt file, a wrong model), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from rich.console import Console

from fastcompress.cli.parser import make_parser

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    try:
        options = make_parser().parse_args(arguments)
    except SystemExit as stop:  # argparse has printed its message
        return stop.code if isinstance(stop.code, int) else 2
    try:
        answer, text = options.run(options)
    except KeyboardInterrupt:
        print("fastcompress: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if options.traceback:
            raise
        print(f"fastcompress: {type(error).__name__}: {error}", file=sys.stderr)
        if options.json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}))
        return 1
    if options.json:
        print(json.dumps(answer, default=str))
    elif isinstance(text, str):
        print(text)
    else:
        Console().print(text)
    return 0
