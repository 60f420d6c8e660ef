"""Song Describer: scores of a text-to-audio model on captioned music, during training and afterwards."""
