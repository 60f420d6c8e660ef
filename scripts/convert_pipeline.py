"""Pipelines of diffusers to models and back: python scripts/convert_pipeline.py --help"""

import sys

from stable_audio_tools.cli.convert_pipeline import main

if __name__ == "__main__":
    sys.exit(main())
