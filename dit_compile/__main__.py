"""``python -m dit_compile`` is the command ``ditc``."""

import sys

from dit_compile.cli import main

sys.exit(main())
