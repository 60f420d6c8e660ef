"""Song Describer: how a text-to-audio model does on captioned music, in training and afterwards alike."""
