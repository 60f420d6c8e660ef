"""Score a checkpoint on the captions of Song Describer: python scripts/eval_song_describer_checkpoint_clap.py --help"""

import sys

from stable_audio_tools.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
