"""Train an adapter of a model: python train_lora.py --help"""

import sys

from stable_audio_tools.cli.train_lora import main

if __name__ == "__main__":
    sys.exit(main())
