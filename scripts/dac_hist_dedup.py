"""Find copies in a data set by codec-code histograms: python scripts/dac_hist_dedup.py --help"""

import sys

from stable_audio_tools.cli.deduplicate import main

if __name__ == "__main__":
    sys.exit(main())
