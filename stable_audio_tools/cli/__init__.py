"""The commands, a module for each subject; the root scripts and the console command call them."""
