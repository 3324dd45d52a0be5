"""``python -m notewave``."""

import sys

from notewave.cli import main

sys.exit(main())
