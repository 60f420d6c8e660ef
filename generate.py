"""Generate audio for a file of prompts: python generate.py --help"""

import sys

from stable_audio_tools.cli.generate import main

if __name__ == "__main__":
    sys.exit(main())
