"""Pass audio files through an autoencoder and measure the result: python reconstruct_audios.py --help"""

import sys

from stable_audio_tools.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
