"""`python -m kdjax` is the command `kdjax`."""

import sys

from kdjax.cli.main import main

sys.exit(main())
