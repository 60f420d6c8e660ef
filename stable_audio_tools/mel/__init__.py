"""Mel spectrograms as the space of a model, and the ways back to audio.

| file | subject |
|---|---|
| `filterbank.py`, `spectra.py` | mel bands and their rank; framing with exactly n // hop frames |
| `transforms.py` | `db_image` and `bigvgan`: audio to bands in [-1, 1], and back to physical units |
| `pretransform.py` | `{"pretransform": {"type": "mel"}}`: bands as channels, `(b, mels, frames)` |
| `vocoders.py` | bands to STFT magnitudes; `{"vocoder": {"type": "griffin_lim" or "bigvgan"}}` |
| `bigvgan.py` | the network, its published configs, its weight files |
| `dataset.py`, `arrow.py` | `audio_to_images.py`: audio files to a dataset of bands |
| `pipeline_folders.py` | folders of diffusers' audio diffusion pipelines, read and written |
| `decoding.py` | `decode_mel.py`: files of bands to audio |
"""
