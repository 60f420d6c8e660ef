"""From noise to audio: schedules, samplers, and the functions that generate."""
