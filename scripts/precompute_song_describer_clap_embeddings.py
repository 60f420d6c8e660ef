"""Vectors of captioned tracks: python scripts/precompute_song_describer_clap_embeddings.py --help"""

import sys

from stable_audio_tools.cli.embed_song_describer import main

if __name__ == "__main__":
    sys.exit(main())
