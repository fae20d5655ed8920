"""`python -m magicedit`, where the command `magicedit` is not on the path."""

import sys

from magicedit.cli import main

sys.exit(main())
