"""`python bench TABLE...`: every benchmark of this folder, one word each; see METHODOLOGY.md."""

from __future__ import annotations

from compare import main

if __name__ == "__main__":
    main()
