"""``python -m mirrorgan_fast``, the same as the ``mirrorgan-fast`` command."""

import sys

from mirrorgan_fast.cli.main import main

sys.exit(main())
