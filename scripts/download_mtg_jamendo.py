"""Download tracks and tables of MTG-Jamendo: python scripts/download_mtg_jamendo.py --help"""

import sys

from stable_audio_tools.cli.download_jamendo import main

if __name__ == "__main__":
    sys.exit(main())
