"""A model in the browser: python run_gradio.py --help"""

import sys

from stable_audio_tools.cli.run_gradio import main

if __name__ == "__main__":
    sys.exit(main())
