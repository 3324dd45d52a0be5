"""``python -m notewave.cli``."""

import sys

from notewave.cli import main

sys.exit(main())
