"""`python -m replicator_client` is `replicator-plugin`."""

import sys

from .command import main

sys.exit(main())
