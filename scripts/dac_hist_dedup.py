"""Find copies in a data set by codec-code histograms: python scripts/dac_hist_dedup.py --help"""

import sys

from stable_audio_tools.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
