"""Vectors of captioned tracks: python scripts/precompute_song_describer_clap_embeddings.py --help"""

import sys

from stable_audio_tools.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
