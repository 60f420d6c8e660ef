"""Features of a dataset or of generated files: python scripts/dtrak_extract_features.py --help"""

import sys

from stable_audio_tools.cli.dtrak_extract_features import main

if __name__ == "__main__":
    sys.exit(main())
