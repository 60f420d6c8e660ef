"""From a training checkpoint to a file that generates: python unwrap_model.py --help"""

import sys

from stable_audio_tools.cli.unwrap_model import main

if __name__ == "__main__":
    sys.exit(main())
