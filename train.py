"""Train a model: python train.py --help"""

import sys

from stable_audio_tools.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
