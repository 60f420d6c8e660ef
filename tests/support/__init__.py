"""Small models, sounds and stand-ins that several test folders share."""
