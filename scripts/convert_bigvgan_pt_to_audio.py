"""The older name of decode_mel.py: python scripts/convert_bigvgan_pt_to_audio.py --help"""

import sys

from stable_audio_tools.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
