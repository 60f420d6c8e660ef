"""Search for passages of known recordings: shifted, cut, re-encoded, or changed in speed, pitch and tempo."""
