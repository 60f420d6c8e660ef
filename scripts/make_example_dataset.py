"""Make the example data set: python scripts/make_example_dataset.py [FOLDER]"""

import sys

from stable_audio_tools.cli.make_example_dataset import main

if __name__ == "__main__":
    sys.exit(main())
