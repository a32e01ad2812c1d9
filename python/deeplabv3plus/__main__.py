"""`python -m deeplabv3plus` is `dlv3p`."""

from __future__ import annotations

import sys

from deeplabv3plus.cli import main

sys.exit(main())
