"""Features of a dataset or of generated files: python scripts/dtrak_extract_features.py --help"""

import sys

from stable_audio_tools.cli.main import run_script

if __name__ == "__main__":
    sys.exit(run_script(__file__))
