"""`python -m fastdiff` is the command `fastdiff`."""

import sys

from fastdiff.cli import main

sys.exit(main())
