"""Pass audio files through an autoencoder and measure the result: python reconstruct_audios.py --help"""

import sys

from stable_audio_tools.cli.reconstruct_audios import main

if __name__ == "__main__":
    sys.exit(main())
