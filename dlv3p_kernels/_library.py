"""The `dlv3p` operator namespace: every schema of the package is defined through `LIBRARY`."""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("dlv3p", "DEF")
