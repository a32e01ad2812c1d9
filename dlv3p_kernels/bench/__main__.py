"""`python -m dlv3p_kernels.bench`, the same as `dlv3p bench`."""

import sys

from .cli import main

sys.exit(main(sys.argv[1:]))
