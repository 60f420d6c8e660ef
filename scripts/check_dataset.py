"""Look through a dataset for broken files: python scripts/check_dataset.py --help"""

import sys

from stable_audio_tools.cli.check_data import main

if __name__ == "__main__":
    sys.exit(main())
