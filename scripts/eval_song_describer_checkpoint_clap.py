"""Score a checkpoint on the captions of Song Describer: python scripts/eval_song_describer_checkpoint_clap.py --help"""

import sys

from stable_audio_tools.cli.score_song_describer import main

if __name__ == "__main__":
    sys.exit(main())
