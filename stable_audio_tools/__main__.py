"""`python -m stable_audio_tools`: the same as `stable-audio-tools`."""

import sys

from stable_audio_tools.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
