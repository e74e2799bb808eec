"""`python -m hf_gateau.cli`, for `accelerate launch -m`."""

import sys

from . import main


if __name__ == "__main__":
    sys.exit(main())
