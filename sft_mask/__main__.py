"""``python -m sft_mask`` is ``sft-mask``."""

import sys

from sft_mask.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
