"""torch's own tests of process groups, those in the wheel, run on a backend of choice.

`python -m tests.torch.suite --help` in the root of the repository.
"""

from __future__ import annotations
