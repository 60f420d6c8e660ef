"""One module per command; the root scripts and the console command are two lines over these."""
