"""Cut audio into mel spectrograms: python scripts/audio_to_images.py --help"""

import sys

from stable_audio_tools.cli.audio_to_images import main

if __name__ == "__main__":
    sys.exit(main())
