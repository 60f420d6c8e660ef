"""Encode texts once, for conditions that are looked up: python scripts/encode_text.py --help"""

import sys

from stable_audio_tools.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
