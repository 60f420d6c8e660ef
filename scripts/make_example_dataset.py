"""Make the example data set: python scripts/make_example_dataset.py [FOLDER]"""

import sys

from stable_audio_tools.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
