"""Join the features of several processes: python scripts/dtrak_merge.py --help"""

import sys

from stable_audio_tools.cli.dtrak_merge import main

if __name__ == "__main__":
    sys.exit(main())
