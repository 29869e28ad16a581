"""Makes ``python -m jetstream`` the command ``jetstream``."""

from __future__ import annotations

import sys

from jetstream.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
