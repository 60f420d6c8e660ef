"""Subset plans, measured outputs, linear datamodeling score: python scripts/dtrak_validate.py --help"""

import sys

from stable_audio_tools.cli.dtrak_validate import main

if __name__ == "__main__":
    sys.exit(main())
