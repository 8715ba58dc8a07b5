"""What the launcher of a Flex Template runs; it wants a file."""

import sys

from pipelines import template

sys.exit(template.main())
