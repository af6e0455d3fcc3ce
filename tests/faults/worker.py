"""What torchrun starts in the tests: the command line, with what is planted into one rank."""

from __future__ import annotations

import os
import sys

import seeded

if __name__ == "__main__":
    seeded.prepare(dict(os.environ))
    from kilolayer.__main__ import main

    sys.exit(main())
