"""What the examples share: options of the command line, plots, files."""
