"""Encode a dataset of audio to latents: python scripts/pre_encode.py --help"""

import sys

from stable_audio_tools.cli.pre_encode import main

if __name__ == "__main__":
    sys.exit(main())
