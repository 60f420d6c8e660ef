"""Scores of training items for queries: python scripts/dtrak_score.py --help"""

import sys

from stable_audio_tools.cli.dtrak_score import main

if __name__ == "__main__":
    sys.exit(main())
