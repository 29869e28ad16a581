"""`python bench TABLE...`: tables of the comparison, one word each; see METHODOLOGY.md.
`python bench links` measures links and the stack above them, and has options of its own. Programs
beside it: incast.py, loss.py and device.py."""

from __future__ import annotations

import sys

import links
from compare import main

if __name__ == "__main__":
    if sys.argv[1:2] == ["links"]:
        sys.exit(links.main(sys.argv[2:]))
    main()
