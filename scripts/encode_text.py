"""Encode texts once, for conditions that are looked up: python scripts/encode_text.py --help"""

import sys

from stable_audio_tools.cli.encode_text import main

if __name__ == "__main__":
    sys.exit(main())
