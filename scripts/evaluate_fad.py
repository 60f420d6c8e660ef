"""Distances between sets of audio: python scripts/evaluate_fad.py --help"""

import sys

from stable_audio_tools.cli.evaluate_fad import main

if __name__ == "__main__":
    sys.exit(main())
