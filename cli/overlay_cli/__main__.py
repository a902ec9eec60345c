"""`python -m overlay_cli` is `overlay`."""

import sys

from overlay_cli.main import main

sys.exit(main())
