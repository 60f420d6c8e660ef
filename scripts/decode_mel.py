"""Mel spectrograms to audio: python scripts/decode_mel.py --help"""

import sys

from stable_audio_tools.cli.decode_mel import main

if __name__ == "__main__":
    sys.exit(main())
