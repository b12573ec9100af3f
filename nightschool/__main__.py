"""`python -m nightschool` is the `nightschool` command."""

import sys

from nightschool.cli import main

sys.exit(main())
